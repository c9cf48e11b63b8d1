# What a token needs for all that proconsul does: beside discovery, registering any service,
# settings, and `proconsul doctor`'s look at the cluster. For people and deployments, not for
# services.
#
#   consul acl policy create -name proconsul-admin -rules @admin.hcl

service_prefix "" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}

agent_prefix "" {
  policy = "read"
}

# Settings: `proconsul kv`.
key_prefix "" {
  policy = "write"
}

# The health of the servers: `proconsul doctor`.
operator = "read"
