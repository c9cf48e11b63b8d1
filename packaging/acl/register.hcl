# What a token needs that registers the service `web`: write the names of yours instead.
# Registration, its heartbeat, maintenance, and deregistration; nothing of other services.
#
#   consul acl policy create -name register-web -rules @register.hcl
#   consul acl token create -description web -policy-name register-web

service "web" {
  policy = "write"
}
