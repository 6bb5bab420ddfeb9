package ratls

import (
	"encoding/json"

	"github.com/google/go-tdx-guest/pcs"
)

// Assess is assess, given the JSON of the vendor's structures and a platform whose TDX module is a production module of Intel.
func Assess(tcbInfo, qeIdentity []byte, teeTCBSVN [16]byte, components []byte, pceSVN uint16, qeSVN uint32) (TCB, error) {
	var info pcs.TcbInfo
	var qe pcs.EnclaveIdentity
	if err := json.Unmarshal(tcbInfo, &info); err != nil {
		return TCB{}, err
	}
	if err := json.Unmarshal(qeIdentity, &qe); err != nil {
		return TCB{}, err
	}
	return assess(&info, &qe, platform{svn: teeTCBSVN, pck: pcs.PckCertTCB{CPUSvnComponents: components, PCESvn: pceSVN},
		signer: make([]byte, 48), attributes: make([]byte, 8), qeSVN: qeSVN})
}

// Accepts is accepts.
func (p Policy) Accepts(tcb TCB) error { return p.accepts(tcb) }
