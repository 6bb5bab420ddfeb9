package enroll_test

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dstack.host/gateway/enroll"
	"dstack.host/gateway/enroll/guesttest"
	"dstack.host/ratls"
	"dstack.host/ratls/simtdx"
	"dstack.host/tunnel"
)

// releases are the guests that differ, with the KMS of their time.
var releases = []guesttest.Version{guesttest.V054, guesttest.V058, guesttest.V0511, guesttest.V06}

// standIn boots a guest of a release: its certificates have the extensions that the KMS of that release writes.
func (w *world) standIn(t testing.TB, v guesttest.Version, td *simtdx.TD) *guesttest.Guest {
	t.Helper()
	info, key := fromKMS(t, td), newECKey(t)
	ca := w.kms.appCA(t, info.AppID)
	certificate := func(more func(spki []byte) []pkix.Extension) tls.Certificate {
		return leafFor(t, key, ca, func(spki []byte) []pkix.Extension {
			return append([]pkix.Extension{ext(t, 3, info.AppID), ext(t, 4, []byte("app:custom"))}, more(spki)...)
		})
	}
	legacy := func(spki []byte) []pkix.Extension {
		a := attestation(t, td, ratls.TaggedReportData(ratls.TagCertificate, spki))
		log := must(json.Marshal(must(td.EventLog(t.Context()))(t)))(t)
		return []pkix.Extension{ext(t, 1, a.Quote), ext(t, 2, log)}
	}
	current := func(spki []byte) []pkix.Extension {
		a := attestation(t, td, ratls.TaggedReportData(ratls.TagCertificate, spki))
		return []pkix.Extension{ext(t, 8, must(a.MarshalBinary())(t))}
	}
	appInfo := ext(t, 9, shortInfo(t, info))
	if v == guesttest.V06 {
		appInfo = ext(t, 9, must(info.MarshalBinary())(t))
	}
	g := &guesttest.Guest{
		Version: v, URLs: []string{fmt.Sprintf("https://%s", w.at)}, Root: w.kms.root.Leaf, GatewayAppID: w.appID(t),
		Key: tunnel.NewPrivateKey(), Ports: `{"ports":[{"port":443,"pp":true}],"restrict_mode":false}`, Dir: t.TempDir(),
	}
	switch v {
	case guesttest.V054:
		g.Client = certificate(legacy)
	case guesttest.V058: // its KMS writes attestations of TDX in the legacy form
		g.Client = certificate(func([]byte) []pkix.Extension { return []pkix.Extension{appInfo} })
		g.Fallback = certificate(func(spki []byte) []pkix.Extension { return append(legacy(spki), appInfo) })
	default:
		g.Client = certificate(func([]byte) []pkix.Extension { return []pkix.Extension{appInfo} })
		g.Fallback = certificate(func(spki []byte) []pkix.Extension { return append(current(spki), appInfo) })
	}
	return g
}

// appID is what the KMS tells guests of this gateway.
func (w *world) appID(t testing.TB) string {
	t.Helper()
	return "0x" + strings.ToUpper(hex.EncodeToString(must(ratls.ReadCertificate(w.config.Certificate.Leaf))(t).AppID))
}

// TestStockGuestsRegisterUnchanged boots every release at gateways of every want, and holds the requests, octet by octet, what is
// registered, and the file that is written.
func TestStockGuestsRegisterUnchanged(t *testing.T) {
	w := newWorld(t)
	for _, v := range releases {
		for _, want := range []enroll.Evidence{enroll.EvidenceOff, enroll.EvidencePreferred, enroll.EvidenceRequired} {
			t.Run(fmt.Sprintf("%s, evidence %q", v, want), func(t *testing.T) {
				at := w.serve(t, func(c *enroll.Config) { c.Evidence = want })
				td := w.boot(t, simtdx.VM{AppCompose: "{}"})
				g := w.standIn(t, v, td)
				g.URLs = []string{fmt.Sprintf("https://%s", at)}
				if err := g.Refresh(t.Context(), true); err != nil {
					t.Fatal(err)
				}
				identity, requests := "kms-app-info", 1
				switch {
				case v == guesttest.V054:
					identity = "ratls-legacy"
				case want != enroll.EvidenceOff && v == guesttest.V058:
					identity, requests = "ratls-legacy", 2
				case want != enroll.EvidenceOff:
					identity, requests = "ratls-v0", 2
				}
				inst := w.registry.Snapshot().Instance(idOf(t, td).ID)
				if inst.Identity != identity || inst.Key != g.Key.PublicKey() {
					t.Errorf("registered with %s and key %s", inst.Identity, inst.Key)
				}
				checkSent(t, g, at, requests)
				checkFile(t, g, inst.Addr)
				ran := slices.Clone(g.Ran)
				commands := []string{"wg-quick down " + g.Interface(), "iptables -F DSTACK_WG", "iptables -A DSTACK_WG -s 203.0.113.5 -j ACCEPT", "iptables -A DSTACK_WG -j DROP", "wg-quick up " + g.Interface()}
				if diff := cmp.Diff(commands, ran); diff != "" {
					t.Errorf("commands (-want +got):\n%s", diff)
				}
				// Refreshes change nothing on either side, and need no second certificate.
				before := w.state(t)
				for range 2 {
					if err := g.Refresh(t.Context(), false); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(before, w.state(t)); diff != "" {
					t.Errorf("a refresh changed (-before +after):\n%s", diff)
				}
				if len(g.Sent) != requests+2 || len(g.Ran) != len(ran) {
					t.Errorf("two refreshes sent %d requests and ran %v", len(g.Sent)-requests, g.Ran[len(ran):])
				}
			})
		}
	}
}

// checkSent holds requests to recorded ones.
func checkSent(t *testing.T, g *guesttest.Guest, at netip.AddrPort, n int) {
	t.Helper()
	body := fmt.Sprintf(`{"client_public_key":"%s"}`, g.Key.PublicKey())
	if g.Version == guesttest.V0511 || g.Version == guesttest.V06 {
		body = fmt.Sprintf(`{"client_public_key":"%s","port_policy":{"ports":[{"port":443,"pp":true}],"restrict_mode":false}}`, g.Key.PublicKey())
	}
	request := fmt.Sprintf("POST /prpc/RegisterCvm?json HTTP/1.1\r\naccept: */*\r\nhost: %s\r\ncontent-length: %d\r\n\r\n%s", at, len(body), body)
	if diff := cmp.Diff(slices.Repeat([]string{request}, n), g.Sent); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// checkFile holds the configuration to the exact text.
func checkFile(t *testing.T, g *guesttest.Guest, addr netip.Addr) {
	t.Helper()
	got := string(must(os.ReadFile(g.File()))(t))
	key := base64.StdEncoding.EncodeToString(g.Key[:])
	want := fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = 9182\nAddress = %s/32\n\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.77.0.1/32\nEndpoint = 203.0.113.5:51820\nPersistentKeepalive = 25\n", key, addr, gatewayKey)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", g.File(), diff)
	}
}

// TestTheOrderOfServersNeverChanges asks gateways that were configured with the same servers in another order.
func TestTheOrderOfServersNeverChanges(t *testing.T) {
	w := newWorld(t)
	var servers []enroll.TunnelServer
	for i := range 4 {
		servers = append(servers, enroll.TunnelServer{Key: newKey(), Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}), 24), Endpoint: fmt.Sprintf("203.0.113.%d:51820", i)})
	}
	for _, v := range releases {
		g := w.standIn(t, v, w.boot(t, simtdx.VM{AppCompose: "{}"}))
		for i := range 3 {
			at := w.serve(t, func(c *enroll.Config) { c.Servers = append(slices.Clone(servers[i:]), servers[:i]...) })
			g.URLs = []string{fmt.Sprintf("https://%s", at)}
			if err := g.Refresh(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		if downs := count(g.Ran, "wg-quick down "+g.Interface()); downs != 1 {
			t.Errorf("%s took its tunnel down %d times", v, downs)
		}
		if n := count(g.Ran, "iptables -A DSTACK_WG -s 203.0.113.2 -j ACCEPT"); n != 1 {
			t.Errorf("%s let in %v", v, g.Ran)
		}
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// TestGuestsTryGatewaysInOrder has dead ones among them, and URLs of every ending.
func TestGuestsTryGatewaysInOrder(t *testing.T) {
	w := newWorld(t)
	dead, refusing := "https://127.0.0.1:1", fmt.Sprintf("https://%s", w.serve(t, func(c *enroll.Config) { c.PerSource = enroll.Rate{Interval: time.Hour, Burst: 0} }))
	for _, v := range releases {
		for _, ending := range []string{"", "/"} {
			g := w.standIn(t, v, w.boot(t, simtdx.VM{AppCompose: "{}"}))
			good := fmt.Sprintf("https://%s%s", w.at, ending)
			g.URLs = []string{dead, good, refusing}
			if err := g.Refresh(t.Context(), true); err != nil || len(g.Sent) != 1 {
				t.Errorf("%s at %s: %d requests, %v", v, good, len(g.Sent), err)
			}
		}
	}
	g := w.standIn(t, guesttest.V06, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	g.URLs = []string{dead, dead}
	if err := g.Refresh(t.Context(), true); err == nil || !strings.Contains(err.Error(), "all dstack-gateway urls are down: dial tcp 127.0.0.1:1") {
		t.Errorf("error %v", err)
	}
	g.URLs = []string{fmt.Sprintf("https://%s/prpc", w.at), dead}
	if err := g.Refresh(t.Context(), true); err != nil {
		t.Error(err)
	}
}

// TestGuestsBelieveOnlyTheirKMSsGateway shows them gateways that are none of theirs.
func TestGuestsBelieveOnlyTheirKMSsGateway(t *testing.T) {
	w := newWorld(t)
	stranger := attested(t, w.boot(t, simtdx.VM{AppCompose: "{}"}), func(o *ratls.CertOptions) { o.Names, o.Usage = []string{"127.0.0.1"}, nil })
	foreign := fmt.Sprintf("https://%s", w.serve(t, func(c *enroll.Config) { c.Certificate = &stranger }))
	for _, row := range []struct {
		name, url, appID, want string
	}{
		{"its own", "", w.appID(t), ""},
		{"one of a list", "", "ff," + w.appID(t), ""},
		{"another app", "", strings.Repeat("ab", 20), "Invalid dstack-gateway app id: " + strings.ToLower(w.appID(t)[2:])},
		{"another root", foreign, w.appID(t), "certificate signed by unknown authority"},
		{"another root, any", foreign, guesttest.Any, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := w.standIn(t, guesttest.V0511, w.boot(t, simtdx.VM{AppCompose: "{}"}))
			g.GatewayAppID = row.appID
			if row.url != "" {
				g.URLs = []string{row.url}
			}
			if err := g.Refresh(t.Context(), true); row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v, want %q", err, row.want)
			}
		})
	}
}

// TestGuestsLiveThroughADay polls each release's checker, by a clock of its own, through a gateway that goes away, comes back, and a tunnel that
// falls silent, and counts what reaches the gateway.
func TestGuestsLiveThroughADay(t *testing.T) {
	w := newWorld(t)
	for _, row := range []struct {
		version guesttest.Version
		want    map[string]int // registrations in each hour
	}{
		{guesttest.V054, map[string]int{"well": 0, "silent": 0, "well again": 0}},
		{guesttest.V058, map[string]int{"well": 19, "silent": 20, "well again": 20}},
		{guesttest.V0511, map[string]int{"well": 19, "silent": 20, "well again": 20}},
		{guesttest.V06, map[string]int{"well": 19, "silent": 20, "well again": 20}},
	} {
		t.Run(string(row.version), func(t *testing.T) {
			g := w.standIn(t, row.version, w.boot(t, simtdx.VM{AppCompose: "{}"}))
			if err := g.Refresh(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			before := w.state(t)
			now := time.Date(2026, 8, 7, 0, 0, 0, 0, time.UTC)
			checker := guesttest.NewChecker(row.version, now)
			handshake := now
			for _, phase := range []struct {
				name       string
				handshakes bool
			}{{"well", true}, {"silent", false}, {"well again", true}} {
				sent, ran := len(g.Sent), count(g.Ran, "wg-quick up "+g.Interface())
				for end := now.Add(time.Hour); now.Before(end); now = now.Add(guesttest.Poll) {
					if phase.handshakes {
						handshake = now
					}
					if action := checker.Step(now, true, handshake); action != guesttest.None {
						err := g.Refresh(t.Context(), action == guesttest.Forced)
						checker.Done(err)
						if err != nil {
							t.Fatal(err)
						}
					}
				}
				if got := len(g.Sent) - sent; got != row.want[phase.name] {
					t.Errorf("%s: %d registrations, want %d", phase.name, got, row.want[phase.name])
				}
				if ups := count(g.Ran, "wg-quick up "+g.Interface()) - ran; (ups > 0) != (phase.name == "silent" && row.version != guesttest.V054) {
					t.Errorf("%s: the tunnel was restarted %d times", phase.name, ups)
				}
			}
			if diff := cmp.Diff(before, w.state(t)); diff != "" {
				t.Errorf("three hours of refreshes changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestAGuestThatBootsBeforeItsGateway is 0.6's: boot goes on without a tunnel, and the checker tries again with pauses.
func TestAGuestThatBootsBeforeItsGateway(t *testing.T) {
	w := newWorld(t)
	g := w.standIn(t, guesttest.V06, w.boot(t, simtdx.VM{AppCompose: "{}"}))
	good := g.URLs
	g.URLs = []string{"https://127.0.0.1:1"}
	start := time.Date(2026, 8, 7, 0, 0, 0, 0, time.UTC)
	checker := guesttest.NewChecker(guesttest.V06, start)
	var tries []int
	for now := start; now.Before(start.Add(10 * time.Minute)); now = now.Add(guesttest.Poll) {
		if now.Sub(start) > 7*time.Minute {
			g.URLs = good
		}
		_, err := os.Stat(g.File())
		if checker.Step(now, err == nil, now) == guesttest.Forced {
			tries = append(tries, int(now.Sub(start).Seconds()))
			checker.Done(g.Refresh(t.Context(), true))
		}
	}
	if diff := cmp.Diff([]int{0, 30, 90, 210, 330, 450}, tries); diff != "" {
		t.Errorf("tries, in seconds after the start (-want +got):\n%s", diff)
	}
	checkFile(t, g, w.registry.Snapshot().ByKey(g.Key.PublicKey()).Addr)
}
