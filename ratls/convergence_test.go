package ratls_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"dstack.host/ratls"
)

// convergenceFile is read by the tests of the page's verifier too: both have to come to the same verdicts.
const convergenceFile = "testdata/convergence.json"

// convergence is every combination of the statuses of TDX module, platform and quoting enclave, with the verdict on each.
type convergence struct {
	Comment string `json:"comment"`
	// Policies are lists of accepted statuses, by name.
	Policies   map[string][]string `json:"policies"`
	TCBInfo    json.RawMessage     `json:"tcb_info"`
	QEIdentity json.RawMessage     `json:"qe_identity"`
	Rows       []convergenceRow    `json:"rows"`
}

// convergenceRow is a platform by its security versions, and what is to be said of it.
type convergenceRow struct {
	TEETCBSVN ratls.Hex `json:"tee_tcb_svn"`
	CPUSVN    ratls.Hex `json:"cpu_svn"` // the 16 components of the PCK certificate
	PCESVN    uint16    `json:"pce_svn"`
	QESVN     uint32    `json:"qe_svn"`
	// Module, Platform, QE and Worst are statuses; all are "" when some part is below every level and the platform is refused.
	Module   string `json:"module"`
	Platform string `json:"platform"`
	QE       string `json:"qe"`
	Worst    string `json:"worst"`
	// Accepted names the policies that accept the platform.
	Accepted []string `json:"accepted"`
}

// ranks are the statuses from best to worst; a part at rank i has security version convergenceBest-i.
var ranks = []string{"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"}

const (
	convergenceBest   = 10
	convergenceModule = 3 // the version of the TDX module
	unlistedRank      = 7 // below every level
)

// makeConvergence lists the combinations. What is expected follows from the ranks alone.
func makeConvergence(t *testing.T) convergence {
	t.Helper()
	c := convergence{
		Comment:  "Made by TestConvergence with RATLS_UPDATE=1. Both verifiers, ratls and gateway/web/verify, are held to it.",
		Policies: map[string][]string{"strict": {}, "hardening": {"SWHardeningNeeded"}, "lenient": ranks[1:6]},
	}
	var err1, err2 error
	c.TCBInfo, err1 = json.Marshal(convergenceTCBInfo())
	c.QEIdentity, err2 = json.Marshal(convergenceQE())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	routes := 0
	for _, versioned := range []bool{true, false} {
		for module := range unlistedRank + 1 {
			if !versioned && module > 0 {
				break // the level of the platform covers it
			}
			for platform := range unlistedRank + 1 {
				for qe := range unlistedRank + 1 {
					c.Rows = append(c.Rows, c.row(versioned, module, platform, qe, routes%3))
					routes++
				}
			}
		}
	}
	return c
}

// row is a platform whose parts have the given ranks. It has its own by an SGX component, by PCESVN or by a TDX component.
func (c convergence) row(versioned bool, module, platform, qe, route int) convergenceRow {
	svn := func(rank int) byte { return byte(convergenceBest - rank) }
	r := convergenceRow{TEETCBSVN: bytes.Repeat([]byte{convergenceBest}, 16), CPUSVN: bytes.Repeat([]byte{convergenceBest}, 16), PCESVN: convergenceBest, QESVN: uint32(svn(qe))}
	if versioned {
		r.TEETCBSVN[0], r.TEETCBSVN[1] = svn(module), convergenceModule
	} else {
		r.TEETCBSVN[1] = 0
		module = platform
	}
	switch {
	case route == 0:
		r.CPUSVN[platform%16] = svn(platform)
	case route == 1:
		r.PCESVN = uint16(svn(platform))
	case versioned:
		r.TEETCBSVN[2+platform] = svn(platform)
	default:
		r.TEETCBSVN[0] = svn(platform)
	}
	worst := max(module, platform, qe)
	r.Accepted = []string{}
	if worst == unlistedRank {
		return r
	}
	r.Module, r.Platform, r.QE, r.Worst = ranks[module], ranks[platform], ranks[qe], ranks[worst]
	for _, name := range []string{"strict", "hardening", "lenient"} {
		accepted := append([]string{"UpToDate"}, c.Policies[name]...)
		if slices.Contains(accepted, r.Module) && slices.Contains(accepted, r.Platform) && slices.Contains(accepted, r.QE) {
			r.Accepted = append(r.Accepted, name)
		}
	}
	return r
}

// convergenceLevels has a level for each status, which tcb completes.
func convergenceLevels(tcb func(svn int) map[string]any) []map[string]any {
	levels := make([]map[string]any, len(ranks))
	for i, status := range ranks {
		levels[i] = map[string]any{"tcb": tcb(convergenceBest - i), "tcbDate": fmt.Sprintf("%d-03-13T00:00:00Z", 2025-i), "tcbStatus": status}
	}
	return levels
}

func isvLevel(svn int) map[string]any { return map[string]any{"isvsvn": svn} }

func platformLevel(svn int) map[string]any {
	components := make([]map[string]int, 16)
	tdx := make([]map[string]int, 16)
	for i := range components {
		components[i], tdx[i] = map[string]int{"svn": svn}, map[string]int{"svn": svn}
	}
	tdx[1]["svn"] = 0
	return map[string]any{"sgxtcbcomponents": components, "pcesvn": svn, "tdxtcbcomponents": tdx}
}

func convergenceTCBInfo() map[string]any {
	module := map[string]any{"mrsigner": fmt.Sprintf("%096x", 0), "attributes": fmt.Sprintf("%016x", 0), "attributesMask": "ffffffffffffffff"}
	identity := map[string]any{"id": fmt.Sprintf("TDX_%02X", convergenceModule), "tcbLevels": convergenceLevels(isvLevel)}
	for name, value := range module {
		identity[name] = value
	}
	return map[string]any{"id": "TDX", "version": 3, "issueDate": "2025-01-01T00:00:00Z", "nextUpdate": "2025-01-31T00:00:00Z", "fmspc": "000000000001", "pceId": "0000",
		"tcbType": 0, "tcbEvaluationDataNumber": 17, "tdxModule": module, "tdxModuleIdentities": []any{identity}, "tcbLevels": convergenceLevels(platformLevel)}
}

func convergenceQE() map[string]any {
	return map[string]any{"id": "TD_QE", "version": 2, "issueDate": "2025-01-01T00:00:00Z", "nextUpdate": "2025-01-31T00:00:00Z", "tcbEvaluationDataNumber": 17,
		"miscselect": "00000000", "miscselectMask": "ffffffff", "attributes": fmt.Sprintf("%032x", 0), "attributesMask": fmt.Sprintf("%032x", 0),
		"mrsigner": fmt.Sprintf("%064x", 1), "isvprodid": 2, "tcbLevels": convergenceLevels(isvLevel)}
}

// text renders one row a line.
func (c convergence) text(t *testing.T) []byte {
	t.Helper()
	rows := c.Rows
	c.Rows = nil
	head, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out := append(bytes.TrimSuffix(head, []byte("null}")), "[\n"...)
	for i, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, line...)
		if i < len(rows)-1 {
			out = append(out, ',')
		}
		out = append(out, '\n')
	}
	return append(out, "]}\n"...)
}

func TestConvergence(t *testing.T) {
	want := makeConvergence(t)
	if os.Getenv("RATLS_UPDATE") != "" {
		if err := os.WriteFile(convergenceFile, want.text(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(convergenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kept, want.text(t)) {
		t.Fatalf("%s is not what this test makes; RATLS_UPDATE=1 writes it", convergenceFile)
	}
	for i, row := range want.Rows {
		got := row
		got.Module, got.Platform, got.QE, got.Worst, got.Accepted = "", "", "", "", []string{}
		tcb, err := ratls.Assess(want.TCBInfo, want.QEIdentity, [16]byte(row.TEETCBSVN), row.CPUSVN, row.PCESVN, row.QESVN)
		if err == nil {
			got.Module, got.Platform, got.QE, got.Worst = tcb.Module.Status, tcb.Platform.Status, tcb.QE.Status, tcb.Worst
			for _, name := range []string{"strict", "hardening", "lenient"} {
				if (ratls.Policy{AcceptedTCB: want.Policies[name]}).Accepts(tcb) == nil {
					got.Accepted = append(got.Accepted, name)
				}
			}
		} else if refusedBy(err) != ratls.CheckTCB {
			t.Errorf("row %d: refused by %v", i, err)
		}
		if diff := cmp.Diff(row, got); diff != "" {
			t.Errorf("row %d (-want +got):\n%s", i, diff)
		}
	}
}
