"""Floor 4: a client of other registries, over HTTP (distribution-spec 1.1). It knows no images.

`names` says which registry is meant, `credentials` and `tokens` who asks, `wire` how bytes get there,
`retries` when to try again; `client` is what the rest of the store uses.
"""
