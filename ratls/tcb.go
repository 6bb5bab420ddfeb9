package ratls

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	pb "github.com/google/go-tdx-guest/proto/tdx"
)

// Statuses of a TCB level (Intel PCS API v4, "TCB info").
const (
	StatusUpToDate                          = "UpToDate"
	StatusSWHardeningNeeded                 = "SWHardeningNeeded"
	StatusConfigurationNeeded               = "ConfigurationNeeded"
	StatusConfigurationAndSWHardeningNeeded = "ConfigurationAndSWHardeningNeeded"
	StatusOutOfDate                         = "OutOfDate"
	StatusOutOfDateConfigurationNeeded      = "OutOfDateConfigurationNeeded"
	StatusRevoked                           = "Revoked"
)

// statuses orders them from best to worst.
var statuses = []string{StatusUpToDate, StatusSWHardeningNeeded, StatusConfigurationNeeded,
	StatusConfigurationAndSWHardeningNeeded, StatusOutOfDate, StatusOutOfDateConfigurationNeeded, StatusRevoked}

// worst returns the worst of several statuses.
func worst(parts ...TCBStatus) string {
	rank := 0
	for _, part := range parts {
		// A status that is not known is worse than all that are.
		i := slices.Index(statuses, part.Status)
		if i < 0 {
			return part.Status
		}
		rank = max(rank, i)
	}
	return statuses[rank]
}

// platform is what is judged by TCB info and QE identity.
type platform struct {
	// svn is TEE_TCB_SVN; pck the TCB of the PCK certificate.
	svn [16]byte
	pck pcs.PckCertTCB
	// signer and attributes are those of the TDX module.
	signer, attributes []byte
	// qeSVN is the security version of the quoting enclave.
	qeSVN uint32
}

// assess finds the level of each part (Intel PCS API v4, "TCB info" and "enclave identity", the comparison algorithms): the
// platform by SGX components, PCESVN and TDX components; the module by its own identity when it is versioned; the quoting
// enclave by its ISVSVN. All parts are told apart because go-tdx-guest, at the pinned version, forgets the platform's status
// when the module is versioned, as every module of TDX 1.5 is.
func assess(info *pcs.TcbInfo, qe *pcs.EnclaveIdentity, p platform) (TCB, error) {
	platformLevel, ok := matchPlatform(info.TcbLevels, p)
	if !ok {
		return TCB{}, refuse(CheckTCB, "the platform is below every level of the TCB info")
	}
	moduleLevel, err := matchModule(info, platformLevel, p)
	if err != nil {
		return TCB{}, &Refusal{Check: CheckTCB, Err: err}
	}
	qeLevel, ok := matchISV(qe.TcbLevels, p.qeSVN)
	if !ok {
		return TCB{}, refuse(CheckTCB, "the quoting enclave, version %d, is below every level of its identity", p.qeSVN)
	}
	tcb := TCB{Module: tcbStatus(moduleLevel), Platform: tcbStatus(platformLevel), QE: tcbStatus(qeLevel)}
	tcb.EvaluationDataNumber = uint32(max(0, min(info.TcbEvaluationDataNumber, qe.TcbEvaluationDataNumber)))
	tcb.Worst = worst(tcb.Module, tcb.Platform, tcb.QE)
	return tcb, nil
}

// matchPlatform returns the first level that the platform reaches in everything. Of a versioned module the first two TDX
// components belong to the module's own identity and are not compared here.
func matchPlatform(levels []pcs.TcbLevel, p platform) (pcs.TcbLevel, bool) {
	first := 0
	if p.versioned() {
		first = 2
	}
	for _, level := range levels {
		if reaches(p.pck.CPUSvnComponents, level.Tcb.SgxTcbcomponents, 0) && p.pck.PCESvn >= level.Tcb.Pcesvn &&
			reaches(p.svn[:], level.Tcb.TdxTcbcomponents, first) {
			return level, true
		}
	}
	return pcs.TcbLevel{}, false
}

// reaches compares security versions from index first on; sets of different size never match.
func reaches(have []byte, want []pcs.TcbComponent, first int) bool {
	if len(have) != 16 || len(want) != 16 {
		return false
	}
	for i := first; i < len(have); i++ {
		if have[i] < want[i].Svn {
			return false
		}
	}
	return true
}

// versioned reports whether the TDX module has an identity of its own in the TCB info.
func (p platform) versioned() bool { return p.svn[1] > 0 }

// matchModule returns the level of the TDX module; of a module without an identity of its own, the platform's level covers it.
func matchModule(info *pcs.TcbInfo, platformLevel pcs.TcbLevel, p platform) (pcs.TcbLevel, error) {
	if !p.versioned() {
		return platformLevel, nil
	}
	id := fmt.Sprintf("TDX_%02X", p.svn[1])
	at := slices.IndexFunc(info.TdxModuleIdentities, func(m pcs.TdxModuleIdentity) bool { return strings.EqualFold(m.ID, id) })
	if at < 0 {
		return pcs.TcbLevel{}, fmt.Errorf("the TCB info knows no TDX module %s", id)
	}
	module := info.TdxModuleIdentities[at]
	if !bytes.Equal(module.Mrsigner.Bytes, p.signer) || !masked(p.attributes, module.AttributesMask.Bytes, module.Attributes.Bytes) {
		return pcs.TcbLevel{}, fmt.Errorf("signer or attributes of the TDX module are not those of %s", id)
	}
	level, ok := matchISV(module.TcbLevels, uint32(p.svn[0]))
	if !ok {
		return pcs.TcbLevel{}, fmt.Errorf("the TDX module, version %d, is below every level of %s", p.svn[0], id)
	}
	return level, nil
}

// matchISV returns the first level whose ISVSVN svn reaches.
func matchISV(levels []pcs.TcbLevel, svn uint32) (pcs.TcbLevel, bool) {
	for _, level := range levels {
		if svn >= level.Tcb.Isvsvn {
			return level, true
		}
	}
	return pcs.TcbLevel{}, false
}

// tcbStatus converts a level. A date that does not parse is left out: it is told, never judged.
func tcbStatus(level pcs.TcbLevel) TCBStatus {
	date, _ := time.Parse(time.RFC3339, level.TcbDate)
	return TCBStatus{Status: string(level.TcbStatus), Date: date, Advisories: level.AdvisoryIDs}
}

// matchQE compares the quoting enclave's report with its identity. go-tdx-guest does so too, but only when it is content with
// the TCB statuses, which are for the policy to judge.
func matchQE(report *pb.EnclaveReport, id *pcs.EnclaveIdentity) error {
	misc := binary.LittleEndian.AppendUint32(nil, report.GetMiscSelect())
	switch {
	case !masked(misc, id.MiscselectMask.Bytes, id.Miscselect.Bytes):
		return refuse(CheckQEIdentity, "MISCSELECT of the quoting enclave is not the vendor's")
	case !masked(report.GetAttributes(), id.AttributesMask.Bytes, id.Attributes.Bytes):
		return refuse(CheckQEIdentity, "attributes of the quoting enclave are not the vendor's")
	case len(id.Mrsigner.Bytes) == 0 || !bytes.Equal(report.GetMrSigner(), id.Mrsigner.Bytes):
		return refuse(CheckQEIdentity, "signer of the quoting enclave is not the vendor")
	case report.GetIsvProdId() != uint32(id.IsvProdID):
		return refuse(CheckQEIdentity, "the enclave's product id is %d, want %d", report.GetIsvProdId(), id.IsvProdID)
	}
	return nil
}

// masked reports whether have equals want in the bits of mask.
func masked(have, mask, want []byte) bool {
	if len(have) != len(mask) || len(have) != len(want) {
		return false
	}
	for i := range have {
		if have[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}
