# What a token needs that finds services: all look-ups and `proconsul serve`. It reads, and
# changes nothing. Give the agent's `dns` token (before Consul 1.17 its `default` token) the
# same rights, so that DNS finds what HTTP finds.
#
#   consul acl policy create -name discover -rules @discover.hcl

# The services and their checks.
service_prefix "" {
  policy = "read"
}

# The nodes that they run on: an instance on a node that may not be read is not found.
node_prefix "" {
  policy = "read"
}

# How the agent's DNS interface is set: answers out of HTTP then have its TTLs.
agent_prefix "" {
  policy = "read"
}
