package certs

// CAA is one CAA resource record (RFC 8659) at a base domain.
type CAA struct {
	// Flag is the critical flag octet; always zero here.
	Flag uint8
	// Tag is the property: "issue" or "issuewild".
	Tag string
	// Value is the property's value, unquoted.
	Value string
}

// CAA returns the records that let nobody but this gateway's ACME account obtain certificates for the base domains, and
// for that account only by dns-01 (RFC 8657): both "issue" and "issuewild", as dstack 0.6 certbot/src/acme_client.rs
// publishes them. With the internal issuer, and as long as no account is registered, the records forbid every issuer.
//
// An account is registered before its first order, and Changed fires in between.
func (c *Certs) CAA() []CAA {
	return caaRecords(c.cfg.CAAIdentity, c.Account())
}

func caaRecords(identity, account string) []CAA {
	value := ";"
	if account != "" {
		value = identity + ";validationmethods=dns-01;accounturi=" + account
	}
	return []CAA{{Tag: "issue", Value: value}, {Tag: "issuewild", Value: value}}
}
