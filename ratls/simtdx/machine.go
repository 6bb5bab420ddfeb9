package simtdx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// MachineOptions are those of a [Machine]. Statuses are words of the TCB info ("" is UpToDate, [Unlisted] is below all
// levels); the machine gets the security version that the collateral of its authority gives that status to.
type MachineOptions struct {
	// Name makes the platform's identity (PPID): machines of one name are one platform.
	Name string
	// Platform, Module and QE are the TCB statuses of the platform, the TDX module and the quoting enclave.
	Platform, Module, QE string
	// UnversionedModule is a TDX module without an identity of its own, TEE_TCB_SVN[1] = 0, as those before TDX 1.5. The level of
	// the platform covers it.
	UnversionedModule bool
	// Version is that of the quote format: 4, also when 0, or 5, which carries a TDX 1.5 body.
	Version int
	// ProcessorCA issues the PCK where the Platform CA should.
	ProcessorCA bool
	// ExpiredPCK is a PCK whose time has passed.
	ExpiredPCK bool
	// ForeignQE is a quoting enclave that another vendor signed.
	ForeignQE bool
}

// Machine is one simulated host: a platform with its PCK and a quoting enclave with its attestation key. Trust domains boot on
// it. Its methods may be called concurrently.
type Machine struct {
	// set by Authority.Machine
	version        int
	tcbSVN         [16]byte
	pck            *x509.Certificate
	attestationKey *ecdsa.PrivateKey
	// certification is the part of each quote that certifies the attestation key.
	certification []byte
}

// Machine makes a host.
func (a *Authority) Machine(o MachineOptions) (*Machine, error) {
	m := &Machine{version: o.Version}
	if m.version == 0 {
		m.version = 4
	}
	platformSVN, err1 := svn(o.Platform)
	moduleSVN, err2 := svn(o.Module)
	qeSVN, err3 := svn(o.QE)
	var err4 error
	if m.version != 4 && m.version != 5 {
		err4 = fmt.Errorf("quote version %d is neither 4 nor 5", m.version)
	}
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	m.tcbSVN[0] = moduleSVN
	if !o.UnversionedModule {
		m.tcbSVN[1] = moduleTDX
	}
	ca := a.platformCA
	if o.ProcessorCA {
		ca = a.processorCA
	}
	pck, err := a.pck(ca, o, platformSVN)
	if err != nil {
		return nil, err
	}
	m.pck = pck.cert
	if m.attestationKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	m.certification, err = m.certify(pck, chainPEM(pck.cert, ca.cert, a.root.cert), qeSVN, o.ForeignQE)
	return m, err
}

// pck makes a provisioning certification key with its certificate, which has exactly the six extensions of Intel's.
func (a *Authority) pck(ca issuer, o MachineOptions, svn byte) (issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issuer{}, err
	}
	template, err := a.template(&key.PublicKey, pckName, 7)
	if err != nil {
		return issuer{}, err
	}
	if o.ExpiredPCK {
		template.NotBefore, template.NotAfter = template.NotBefore.AddDate(-7, 0, 0), template.NotBefore
	}
	extension, err := sgxExtension(o.Name, svn)
	if err != nil {
		return issuer{}, err
	}
	template.ExtraExtensions = []pkix.Extension{{Id: oidSGX, Value: extension}}
	cert, err := create(template, ca, key)
	return issuer{cert, key}, err
}

// oidSGX is the extension of PCK certificates (PCK Certificate and CRL Profile Specification, section 1.3.5).
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// attribute is one value in the extension.
type attribute struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// sgxExtension describes a platform.
func sgxExtension(name string, svn byte) ([]byte, error) {
	below := func(parts ...int) asn1.ObjectIdentifier { return append(oidSGX[:len(oidSGX):len(oidSGX)], parts...) }
	fmspc, err := hex.DecodeString(FMSPC)
	if err != nil {
		return nil, err
	}
	cpuSVN := make([]byte, 16)
	cpuSVN[0] = svn
	tcb := make([]attribute, 0, 18)
	for i, component := range cpuSVN {
		tcb = append(tcb, attribute{below(2, i+1), int(component)})
	}
	tcb = append(tcb, attribute{below(2, 17), pceSVN}, attribute{below(2, 18), cpuSVN})
	ppid, instance := sha256.Sum256([]byte("ppid:"+name)), sha256.Sum256([]byte("platform instance:"+name))
	return asn1.Marshal([]attribute{
		{below(1), ppid[:16]},
		{below(2), tcb},
		{below(3), []byte{0, 0}},
		{below(4), fmspc},
		{below(5), asn1.Enumerated(1)}, // scalable
		{below(6), instance[:16]},
		{below(7), []attribute{{below(7, 1), true}, {below(7, 2), true}, {below(7, 3), true}}},
	})
}

// certify makes the quoting enclave's report about the attestation key, signs it with the PCK, and puts the certification data
// together: type 6 around type 5.
func (m *Machine) certify(pck issuer, chain []byte, qeSVN byte, foreign bool) ([]byte, error) {
	auth := make([]byte, 32)
	for i := range auth {
		auth[i] = byte(i)
	}
	key, err := m.publicKey()
	if err != nil {
		return nil, err
	}
	bound := sha256.Sum256(append(key, auth...))
	report := make([]byte, 384)
	copy(report[0x30:], qeAttributes[:])
	copy(report[0x80:], qeSigner[:])
	if foreign {
		report[0x80] ^= 0xff
	}
	binary.LittleEndian.PutUint16(report[0x100:], qeProdID)
	binary.LittleEndian.PutUint16(report[0x102:], uint16(qeSVN))
	copy(report[0x140:], bound[:])
	signature, err := sign(pck.key, report)
	if err != nil {
		return nil, err
	}
	inner := append(report, signature...)
	inner = binary.LittleEndian.AppendUint16(inner, uint16(len(auth)))
	inner = append(inner, auth...)
	inner = binary.LittleEndian.AppendUint16(inner, 5)
	inner = binary.LittleEndian.AppendUint32(inner, uint32(len(chain)))
	inner = append(inner, chain...)
	outer := binary.LittleEndian.AppendUint16(nil, 6)
	outer = binary.LittleEndian.AppendUint32(outer, uint32(len(inner)))
	return append(outer, inner...), nil
}

// publicKey is the attestation key as x‖y, 64 bytes.
func (m *Machine) publicKey() ([]byte, error) {
	point, err := m.attestationKey.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	return point[1:], nil
}
