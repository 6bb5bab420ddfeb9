package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"dstack.host/dnsserver"
	"dstack.host/gateway/store"
)

const (
	// keysInterval is how often the keys of the zones are looked at: whether another node changed them, and whether it
	// is time for one to come or go. Everything about them happens at whole hours, an hour ahead at least.
	keysInterval = time.Minute
	// parentInterval is how often the zone above is asked which keys it names.
	parentInterval = 15 * time.Minute
)

// signing is what the zones are signed with.
type signing struct {
	signer  *dnsserver.Signer                         // set by openSigning; nil: the zones are not signed
	keys    atomic.Pointer[map[string]dnsserver.Keys] // by base domain; replaced by followKeys
	changed chan struct{}                             // holds one: keys was replaced
	parents map[string]dnsserver.Parent               // by base domain; owned by followKeys
}

// openSigning reads the keys, and makes those of a zone that has none.
func (g *Gateway) openSigning(ctx context.Context) (err error) {
	d := g.config.DNS.DNSSEC
	g.signing.changed, g.signing.parents = make(chan struct{}, 1), map[string]dnsserver.Parent{}
	if !d.Sign {
		return nil
	}
	if g.signing.signer, err = dnsserver.NewSigner(dnsserver.SignerConfig{Share: float64(d.SigningPercent) / 100}); err != nil {
		return err
	}
	return g.refreshKeys(ctx)
}

// followKeys keeps the keys of the zones as the configuration wants them, until ctx ends.
func (g *Gateway) followKeys(ctx context.Context) error {
	if g.signing.signer == nil {
		return nil
	}
	asked := time.Time{}
	for {
		if time.Since(asked) >= parentInterval {
			g.askParents(ctx)
			asked = time.Now()
		}
		if err := g.refreshKeys(ctx); err != nil && ctx.Err() == nil {
			g.log.Error("the keys of the zones could not be looked at; they stay as they are", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keysInterval):
		}
	}
}

// refreshKeys reads the keys of all zones and lets them advance.
func (g *Gateway) refreshKeys(ctx context.Context) error {
	all := map[string]dnsserver.Keys{}
	for _, base := range g.config.BaseDomains {
		keys, err := g.zoneKeys(ctx, base)
		if err != nil {
			return fmt.Errorf("keys of zone %s: %w", base, err)
		}
		all[base] = keys
	}
	old := g.signing.keys.Swap(&all)
	if old != nil && fmt.Sprint(*old) == fmt.Sprint(all) {
		return nil
	}
	select {
	case g.signing.changed <- struct{}{}:
	default:
	}
	return nil
}

// zoneKeys returns the keys of one zone as they should be now. They lie sealed in the store; whichever node finds first
// that something is due writes it.
func (g *Gateway) zoneKeys(ctx context.Context, base string) (dnsserver.Keys, error) {
	path := "dns/keys/" + base
	for {
		entry, err := g.store.Get(ctx, path)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		var keys dnsserver.Keys
		if err == nil {
			if keys, err = dnsserver.ParseKeys(entry.Value); err != nil {
				return nil, err
			}
		}
		if keys, err = keys.Advance(time.Now(), g.config.DNS.DNSSEC.KeyPolicy(), g.signing.parents[base]); err != nil {
			return nil, err
		}
		text, err := keys.Marshal()
		if err != nil || bytes.Equal(text, entry.Value) {
			return keys, err
		}
		_, err = g.store.Commit(ctx, []store.Cond{{Path: path, Revision: entry.Revision}}, []store.Op{store.Put(path, text)})
		if err == nil {
			g.log.Info("keys of a zone changed", "zone", base, "keys", fmt.Sprint(keys), "ds", keys.DS(base, time.Now()))
			return keys, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}

// askParents learns which keys the zones above name. One that does not answer is asked again later: until then no key
// goes.
func (g *Gateway) askParents(ctx context.Context) {
	resolver, err := resolverAddr(g.config.DNS.DNSSEC.Resolver)
	if err != nil {
		g.log.Warn("nobody can be asked which keys the zones above name", "error", err)
		return
	}
	for _, base := range g.config.BaseDomains {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		parent, err := dnsserver.AskParent(ctx, resolver, base)
		cancel()
		if err != nil {
			g.log.Debug("the zone above did not tell which keys it names", "zone", base, "error", err)
		}
		g.signing.parents[base] = parent
	}
}

// resolverAddr is the configured resolver, or the first one of the system.
func resolverAddr(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return "", fmt.Errorf("%w; set dns.dnssec.resolver", err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "nameserver" {
			host, _, _ := strings.Cut(fields[1], "%")
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			return host + ":53", nil
		}
	}
	return "", errors.New("/etc/resolv.conf names no resolver; set dns.dnssec.resolver")
}

// zoneSigning is how the zone of a base domain is signed at a time; nil: it is not.
func (g *Gateway) zoneSigning(base string, at time.Time) *dnsserver.Signing {
	keys := g.signing.keys.Load()
	if keys == nil {
		return nil
	}
	return &dnsserver.Signing{
		Signer: g.signing.signer, Keys: (*keys)[base], Denial: dnsserver.Denial(g.config.DNS.DNSSEC.Denial), At: at,
	}
}
