// Package proxy carries bytes between strangers and the apps behind the tunnel.
//
// It owns the TLS listener. The first bytes of a connection, its ClientHello, decide: a name with the suffix s is handed to the app as
// it is, every other name under a served base is terminated here, and anything else is refused with a TLS alert. Requests go by
// their own authority (Host or :authority), for browsers reuse one connection for all names under a wildcard certificate. What
// belongs to the gateway, the bases themselves, "gateway.<base>" and [AttestationPath] on every name, is answered by [Config.Own] and never reaches an
// app.
//
// Every connection has its own upstream connections and its own memory; connections meet only where they are accepted and closed.
package proxy
