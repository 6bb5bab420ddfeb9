package explorer

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"

	"dstack.host/gateway/verify"
	"dstack.host/ratls"
)

// quoteSections shows what a quote says, and who signed it.
func quoteSections(title string, q *ratls.Quote, raw []byte) []Section {
	s := quoteSection(title, q)
	s.add("FMSPC", q.FMSPC, "family of the platform, from the PCK certificate")
	s.add("PPID", hex.EncodeToString(q.PPID), "the processor, from the PCK certificate")
	all := []Section{s}
	if chain := pckChain(raw); len(chain) > 0 {
		all = append(all, certificatesSection("Certificates that signed: "+title, chain))
	}
	return all
}

// pckChain is the PEM chain that a quote carries in certification data of type 5 (Intel TDX DCAP Quoting Library API, appendix A.3.11).
func pckChain(raw []byte) (chain []*x509.Certificate) {
	at := bytes.Index(raw, []byte("-----BEGIN CERTIFICATE-----"))
	if at < 0 {
		return nil
	}
	for rest := raw[at:]; len(chain) < 8; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			break
		}
		chain = append(chain, c)
	}
	return chain
}

func certificatesSection(title string, chain []*x509.Certificate) Section {
	s := Section{Title: title}
	for _, c := range chain {
		s.add(c.Subject.String(), "SHA-256 "+sum(c.Raw), "issued by "+c.Issuer.String(), fmt.Sprintf("%s to %s", stamp(c.NotBefore), stamp(c.NotAfter)))
	}
	return s
}

// claimSections shows what verified evidence says and where each value comes from, a section for each hop.
func claimSections(claims []ratls.Claim) []Section {
	var all []Section
	for _, c := range claims {
		title := "Verified: " + c.Hop
		if len(all) == 0 || all[len(all)-1].Title != title {
			all = append(all, Section{Title: title})
		}
		s := &all[len(all)-1]
		if len(s.Rows) < maxRows {
			s.add(c.Name, clip(c.Value), "from the "+c.Source)
		}
	}
	return all
}

// collateralSections shows what the vendor said of platforms: lists of revoked certificates decoded, JSON as it was signed.
func collateralSections(collateral []ratls.Collateral) []Section {
	index := Section{Title: "Collateral"}
	var all []Section
	for _, c := range collateral {
		title := c.URL
		if u, err := url.Parse(c.URL); err == nil {
			title = u.Path
		}
		index.add(c.URL, fmt.Sprintf("%d bytes, SHA-256 %s", len(c.Body), sum(c.Body)))
		var pretty bytes.Buffer
		list, err := x509.ParseRevocationList(c.Body)
		switch {
		case err == nil:
			s := Section{Title: "Collateral: " + title}
			s.add("issuer", list.Issuer)
			s.add("this update", stamp(list.ThisUpdate))
			s.add("next update", stamp(list.NextUpdate))
			s.add("revoked", len(list.RevokedCertificateEntries))
			for i, r := range list.RevokedCertificateEntries {
				if i == maxRows {
					break
				}
				s.add("serial", r.SerialNumber.Text(16), "since "+stamp(r.RevocationTime))
			}
			all = append(all, s)
		case json.Indent(&pretty, c.Body, "", "  ") == nil:
			all = append(all, textSection("Collateral: "+title, pretty.String()))
		}
	}
	return append([]Section{index}, all...)
}

// bundleSections shows what a verification saw beside the document.
func bundleSections(b *verify.Bundle) []Section {
	s := Section{Title: "Verification"}
	s.add("URL", b.URL)
	s.add("at", stamp(b.Time))
	s.add("nonce", hex.EncodeToString(b.Nonce))
	s.add("TLS exporter", hex.EncodeToString(b.Exporter), b.Unbound)
	s.add("TLS", b.TLS.Version)
	s.add("timestamps of logs in TLS", len(b.TLS.SCTs))
	s.add("fresh quotes of the app asked for", b.FreshApp)
	s.add("resolvers", strings.Join(b.Resolvers, ", "))
	for _, a := range b.DNS {
		s.add("DNS "+a.Name+" "+a.Type, hex.EncodeToString(a.Message), a.Resolver, a.Error)
	}
	all := []Section{s}
	var chain []*x509.Certificate
	for _, der := range b.TLS.Certificates {
		if c, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, c)
		}
	}
	all = append(all, certificatesSection("Certificates of the connection", chain))
	if len(b.ACMEInfo.Body) > 0 {
		all = append(all, textSection("History of keys, as the gateway tells it", string(b.ACMEInfo.Body)))
	}
	return append(all, collateralSections(b.Collateral)...)
}
