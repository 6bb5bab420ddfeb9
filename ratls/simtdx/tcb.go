package simtdx

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"dstack.host/ratls"
)

// The identities of the simulated hardware.
const (
	// FMSPC is the family of all machines, lower-case hex.
	FMSPC = "d57ac0ffee01"
	// EvaluationNumber is the tcbEvaluationDataNumber of the collateral.
	EvaluationNumber = 17

	pceID     = "0000"
	pceSVN    = 11
	qeProdID  = 2
	bestSVN   = 10
	moduleTDX = 3 // the version of the TDX module, with identity TDX_03
)

// ladder is the statuses from best to worst. A part at step i has the security version bestSVN-i, and that version has status
// ladder[i].
var ladder = []string{
	ratls.StatusUpToDate,
	ratls.StatusSWHardeningNeeded,
	ratls.StatusConfigurationNeeded,
	ratls.StatusConfigurationAndSWHardeningNeeded,
	ratls.StatusOutOfDate,
	ratls.StatusOutOfDateConfigurationNeeded,
	ratls.StatusRevoked,
}

// unlisted is the security version that is below every level.
const unlisted = 1

// Unlisted stands, as the status of a part, for a version that the collateral has no level for.
const Unlisted = "unlisted"

// svn returns the security version that has status; "" is the best.
func svn(status string) (byte, error) {
	switch status {
	case "":
		return bestSVN, nil
	case Unlisted:
		return unlisted, nil
	}
	i := slices.Index(ladder, status)
	if i < 0 {
		return 0, fmt.Errorf("unknown TCB status %q", status)
	}
	return byte(bestSVN - i), nil
}

// qeSigner and qeAttributes are those of the simulated quoting enclave: initialised, provision key.
var (
	qeSigner     = [32]byte{0: 0x51, 31: 0xed}
	qeAttributes = [16]byte{0: 0x11}
)

// The structures below are the JSON of Intel's PCS API v4, in its order of members.

type tcbInfo struct {
	ID                      string           `json:"id"`
	Version                 int              `json:"version"`
	IssueDate               time.Time        `json:"issueDate"`
	NextUpdate              time.Time        `json:"nextUpdate"`
	FMSPC                   string           `json:"fmspc"`
	PCEID                   string           `json:"pceId"`
	TCBType                 int              `json:"tcbType"`
	TCBEvaluationDataNumber uint32           `json:"tcbEvaluationDataNumber"`
	TDXModule               tdxModule        `json:"tdxModule"`
	TDXModuleIdentities     []moduleIdentity `json:"tdxModuleIdentities"`
	TCBLevels               []tcbLevel       `json:"tcbLevels"`
}

type tdxModule struct {
	MRSigner       string `json:"mrsigner"`
	Attributes     string `json:"attributes"`
	AttributesMask string `json:"attributesMask"`
}

type moduleIdentity struct {
	ID string `json:"id"`
	tdxModule
	TCBLevels []tcbLevel `json:"tcbLevels"`
}

type tcbLevel struct {
	TCB struct {
		SGX    []component `json:"sgxtcbcomponents,omitempty"`
		PCESVN int         `json:"pcesvn,omitempty"`
		TDX    []component `json:"tdxtcbcomponents,omitempty"`
		ISVSVN int         `json:"isvsvn,omitempty"`
	} `json:"tcb"`
	TCBDate     string   `json:"tcbDate"`
	TCBStatus   string   `json:"tcbStatus"`
	AdvisoryIDs []string `json:"advisoryIDs,omitempty"`
}

type component struct {
	SVN byte `json:"svn"`
}

type qeIdentity struct {
	ID                      string     `json:"id"`
	Version                 int        `json:"version"`
	IssueDate               time.Time  `json:"issueDate"`
	NextUpdate              time.Time  `json:"nextUpdate"`
	TCBEvaluationDataNumber uint32     `json:"tcbEvaluationDataNumber"`
	MiscSelect              string     `json:"miscselect"`
	MiscSelectMask          string     `json:"miscselectMask"`
	Attributes              string     `json:"attributes"`
	AttributesMask          string     `json:"attributesMask"`
	MRSigner                string     `json:"mrsigner"`
	ISVProdID               int        `json:"isvprodid"`
	TCBLevels               []tcbLevel `json:"tcbLevels"`
}

// intelModule is the identity of a production module: signer and attributes are zero.
func intelModule() tdxModule {
	return tdxModule{MRSigner: hex.EncodeToString(make([]byte, 48)), Attributes: "0000000000000000", AttributesMask: "ffffffffffffffff"}
}

// newTCBInfo describes the levels of platforms and modules.
func newTCBInfo(issued, next time.Time, number uint32) tcbInfo {
	return tcbInfo{
		ID: "TDX", Version: 3, IssueDate: issued, NextUpdate: next, FMSPC: FMSPC, PCEID: pceID,
		TCBEvaluationDataNumber: number, TDXModule: intelModule(),
		TDXModuleIdentities: []moduleIdentity{{ID: fmt.Sprintf("TDX_%02X", moduleTDX), tdxModule: intelModule(), TCBLevels: isvLevels()}},
		TCBLevels:           platformLevels(),
	}
}

// newQEIdentity describes the quoting enclave.
func newQEIdentity(issued, next time.Time, number uint32) qeIdentity {
	return qeIdentity{
		ID: "TD_QE", Version: 2, IssueDate: issued, NextUpdate: next, TCBEvaluationDataNumber: number,
		MiscSelect: "00000000", MiscSelectMask: "ffffffff",
		Attributes: hex.EncodeToString(qeAttributes[:]), AttributesMask: "fbffffffffffffff0000000000000000",
		MRSigner: hex.EncodeToString(qeSigner[:]), ISVProdID: qeProdID, TCBLevels: isvLevels(),
	}
}

// platformLevels has a level for each step, which SGX and TDX components must both reach. The first TDX component is the
// security version of a module without an identity of its own.
func platformLevels() []tcbLevel {
	levels := isvLevels()
	for i := range levels {
		step := component{SVN: byte(levels[i].TCB.ISVSVN)}
		levels[i].TCB.ISVSVN = 0
		levels[i].TCB.PCESVN = pceSVN
		levels[i].TCB.SGX, levels[i].TCB.TDX = make([]component, 16), make([]component, 16)
		levels[i].TCB.SGX[0], levels[i].TCB.TDX[0] = step, step
	}
	return levels
}

// isvLevels has a level for each step by ISVSVN.
func isvLevels() []tcbLevel {
	levels := make([]tcbLevel, len(ladder))
	for i, status := range ladder {
		levels[i] = tcbLevel{TCBDate: fmt.Sprintf("%d-03-13T00:00:00Z", 2025-i), TCBStatus: status}
		levels[i].TCB.ISVSVN = bestSVN - i
		if i > 0 {
			levels[i].AdvisoryIDs = []string{fmt.Sprintf("SIM-SA-%05d", i)}
		}
	}
	return levels
}
