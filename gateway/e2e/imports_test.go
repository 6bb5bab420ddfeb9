package e2e

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers says which of our own packages a package may import. A folder stands for everything below it, the longest name
// that fits counts. Tests may import more: they are read without their _test files.
var layers = map[string][]string{
	"dnsserver":                  nil,
	"tunnel":                     nil,
	"tunnel/agent":               {"tunnel"},
	"ratls":                      nil,
	"ratls/guestagent":           {"ratls"},
	"ratls/simtdx":               {"ratls"},
	"gateway/config":             {"dnsserver", "ratls"},
	"gateway/web":                nil,
	"gateway/store":              nil,
	"gateway/registry":           {"gateway/store", "tunnel", "ratls"},
	"gateway/certs":              {"gateway/store", "dnsserver"},
	"gateway/proxy/h1":           nil,
	"gateway/proxy/h2":           {"gateway/proxy/h1"},
	"gateway/proxy":              {"gateway/proxy/h1", "gateway/registry", "gateway/web"},
	"gateway/prpc":               {"ratls"},
	"gateway/enroll":             {"gateway/prpc", "gateway/registry", "gateway/store", "tunnel", "ratls"},
	"gateway/enroll/enrollbench": {"gateway", "gateway/config", "gateway/demo", "tunnel", "ratls", "ratls/simtdx"},
	"gateway/attest":             {"gateway/certs", "gateway/proxy", "gateway/registry", "gateway/store", "gateway/web", "tunnel/agent", "ratls"},
	"gateway":                    {"gateway/attest", "gateway/certs", "gateway/config", "gateway/enroll", "gateway/explorer", "gateway/prpc", "gateway/proxy", "gateway/registry", "gateway/store", "gateway/web", "dnsserver", "tunnel", "ratls", "ratls/simtdx"},
	"gateway/explorer":           {"gateway/registry", "gateway/verify", "gateway/web", "ratls"},
	"gateway/verify":             {"gateway/registry", "dnsserver", "ratls"},
	"gateway/demo":               {"gateway", "gateway/config", "gateway/registry", "gateway/verify", "dnsserver", "tunnel", "tunnel/agent", "ratls", "ratls/simtdx"},
	"gateway/join":               {"tunnel", "tunnel/agent", "ratls", "ratls/guestagent", "ratls/simtdx"},
	"gateway/cmd/dstack-gateway": {"gateway", "gateway/config", "gateway/demo", "gateway/explorer", "gateway/join", "gateway/verify", "tunnel", "ratls", "ratls/guestagent"},
	"gateway/e2e":                {"gateway/demo"},
}

// fences says which folder alone may import a library.
var fences = map[string]string{
	"github.com/google/go-tdx-guest":    "ratls",
	"github.com/google/go-configfs-tsm": "ratls",
	"golang.zx2c4.com/wireguard":        "tunnel",
	"github.com/vishvananda/netlink":    "tunnel",
	"gvisor.dev/gvisor":                 "tunnel",
	"github.com/miekg/dns":              "dnsserver",
	"go.etcd.io":                        "gateway/store",
	"github.com/caddyserver/certmagic":  "gateway/certs",
	"github.com/mholt/acmez":            "gateway/certs",
	"github.com/libdns/libdns":          "gateway/certs",
	"github.com/letsencrypt/pebble":     "gateway/certs",
	"github.com/quic-go/quic-go":        "gateway/proxy",
	"google.golang.org/protobuf":        "gateway/prpc",
}

const (
	root   = "../.."
	module = "dstack.host/"
)

// imported is one import of a package by another; test says that only a test file has it.
type imported struct {
	by, what string
	test     bool
}

func imports(t *testing.T) []imported {
	t.Helper()
	var all []imported
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || !strings.HasSuffix(file, ".go") {
			if err == nil && d.IsDir() && d.Name() == ".git" {
				return fs.SkipDir
			}
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		by := path.Dir(filepath.ToSlash(strings.TrimPrefix(file, root+string(os.PathSeparator))))
		for _, spec := range parsed.Imports {
			what, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			all = append(all, imported{by, what, strings.HasSuffix(file, "_test.go") || strings.HasSuffix(by, "test")})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// within returns the longest name of the map that is folder or lies above it.
func within[V any](names map[string]V, folder string) (string, bool) {
	for at := folder; at != "."; at = path.Dir(at) {
		if _, ok := names[at]; ok {
			return at, true
		}
	}
	return "", false
}

// breaches tells every import that the layers or the fences forbid.
func breaches(all []imported) []string {
	var found []string
	for _, i := range all {
		if what, ours := strings.CutPrefix(i.what, module); ours && !i.test {
			by, known := within(layers, i.by)
			if !known {
				found = append(found, fmt.Sprintf("%s stands in no layer: add it to the table", i.by))
			} else if layer, _ := within(layers, what); layer != by && !slices.Contains(layers[by], layer) {
				found = append(found, fmt.Sprintf("%s imports %s", i.by, what))
			}
		}
		for library, home := range fences {
			if i.what != library && !strings.HasPrefix(i.what, library+"/") {
				continue
			}
			if i.by != home && !strings.HasPrefix(i.by, home+"/") {
				found = append(found, fmt.Sprintf("%s imports %s, which belongs to %s", i.by, i.what, home))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func TestImportsGoOneWay(t *testing.T) {
	all := imports(t)
	if len(all) < 100 {
		t.Fatalf("only %d imports were found", len(all))
	}
	for _, breach := range breaches(all) {
		t.Error(breach)
	}
}

func TestABreachIsSeen(t *testing.T) {
	for _, row := range []imported{
		{by: "tunnel", what: module + "ratls"},
		{by: "gateway/registry", what: module + "gateway/proxy"},
		{by: "gateway/proxy", what: module + "gateway"},
		{by: "gateway/new", what: "github.com/miekg/dns"},
		{by: "gateway/proxy", what: "golang.zx2c4.com/wireguard/wgctrl", test: true},
		{by: "somewhere", what: module + "ratls"},
	} {
		if len(breaches([]imported{row})) != 1 {
			t.Errorf("%s may import %s", row.by, row.what)
		}
	}
	if got := breaches([]imported{{by: "ratls/simtdx", what: module + "ratls"}, {by: "gateway/proxy/h1", what: "net"}}); len(got) != 0 {
		t.Errorf("refused although allowed: %v", got)
	}
}

// topLevel is all that may stand in the repository's root.
var topLevel = []string{"gateway", "dnsserver", "tunnel", "ratls", "configs", "go.mod", "go.sum", "Makefile", "Dockerfile", "README.md", "LICENSE"}

func TestTopLevelHoldsOnlyWhatItMay(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		built := e.Name() == "dstack-gateway" || strings.HasPrefix(e.Name(), "bench-")
		if !strings.HasPrefix(e.Name(), ".") && !built && !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s stands at the top level", e.Name())
		}
	}
}
