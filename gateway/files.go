package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"dstack.host/gateway/config"
	"dstack.host/gateway/store"
	"dstack.host/ratls"
)

// storeConfig turns the configuration's etcd section into what the store takes.
func storeConfig(c config.Config, key store.Key) (store.Config, error) {
	s := store.Config{Key: key, Prefix: c.Store.Prefix, Name: c.Node, Username: c.Store.Username, Endpoints: c.Store.Endpoints}
	if len(s.Endpoints) == 0 {
		s.DataDir = c.DataDir
		return s, nil
	}
	if c.Store.PasswordFile != "" {
		password, err := os.ReadFile(c.Store.PasswordFile)
		if err != nil {
			return s, fmt.Errorf("store.password_file: %w", err)
		}
		s.Password = strings.TrimRight(string(password), "\r\n")
	}
	roots, err := optionalPool(c.Store.CAFile)
	if err != nil {
		return s, fmt.Errorf("store.ca_file: %w", err)
	}
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if c.Store.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.Store.CertFile, c.Store.KeyFile)
		if err != nil {
			return s, fmt.Errorf("store.cert_file: %w", err)
		}
		s.TLS.Certificates = []tls.Certificate{pair}
	}
	return s, nil
}

// optionalPool reads PEM roots; nil, the system's, without a file.
func optionalPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// optionalCertificate reads the first certificate of a PEM file; nil without a file.
func optionalCertificate(file string) (*x509.Certificate, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return x509.ParseCertificate(block.Bytes)
}

// enrollCertificate is what the registration server shows: the configured one of the KMS, or an RA-TLS certificate that
// carries this gateway's own quote.
func (g *Gateway) enrollCertificate(ctx context.Context) (*tls.Certificate, error) {
	c := g.config.Enroll
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("enroll.cert_file: %w", err)
		}
		return &pair, nil
	}
	names := c.Names
	if len(names) == 0 {
		for _, base := range g.config.BaseDomains {
			names = append(names, gatewayLabel+"."+base)
		}
	}
	pair, err := ratls.NewCertificate(ctx, g.trust.Platform, ratls.CertOptions{Names: names})
	if err != nil {
		return nil, fmt.Errorf("RA-TLS certificate of the registration server: %w", err)
	}
	return &pair, nil
}

func encodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
