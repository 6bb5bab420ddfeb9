package ratls

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Tags of report data. A tag keeps what was quoted for one purpose from being believed for another.
const (
	// TagCertificate is dstack's binding of a quote to the key of a certificate; its content is the DER SubjectPublicKeyInfo.
	TagCertificate = "ratls-cert"
	// TagZTCertificate and TagACMEAccount are the tags of dstack's gateway, over an SPKI and over an account URI.
	TagZTCertificate = "zt-cert"
	TagACMEAccount   = "acme-account"
	// TagWireGuard binds the exact text of an [AppStatement], which names a WireGuard key.
	TagWireGuard = "dstack-wg-v1"
	// TagGateway begins the report data of the gateway's attestation document.
	TagGateway = "ra-https-v1"
)

// TaggedReportData is SHA-512(tag ":" content), dstack's construction (dstack 0.6 dstack-attest/src/attestation.rs).
func TaggedReportData(tag string, content []byte) ReportData {
	h := sha512.New()
	h.Write([]byte(tag + ":"))
	h.Write(content)
	return ReportData(h.Sum(nil))
}

// GatewayReportData is what the gateway has quoted: SHA-512("ra-https-v1:" root SHA-256(statement)), where the statement is the
// exact text of the document. A document that answers no challenge has a root of zeros.
func GatewayReportData(root [32]byte, statement []byte) ReportData {
	digest := sha256.Sum256(statement)
	return TaggedReportData(TagGateway, append(root[:], digest[:]...))
}

// Sizes in bytes of the two halves of a challenge. They are fixed, because a leaf is a hash of their concatenation.
const (
	NonceSize    = 32
	ExporterSize = 32
)

// Challenge is what a relying party wants to see in the quote of an answer.
type Challenge struct {
	// Nonce is the relying party's, 32 bytes.
	Nonce []byte
	// Exporter is the keying material of the TLS connection that carried the nonce, 32 bytes, or nil when it is not to be bound.
	Exporter []byte
}

// Leaf is the challenge's leaf in the Merkle tree: SHA-256(0x00 nonce exporter).
func (c Challenge) Leaf() ([32]byte, error) {
	if len(c.Nonce) != NonceSize {
		return [32]byte{}, fmt.Errorf("nonce has %d bytes, want exactly %d", len(c.Nonce), NonceSize)
	}
	if n := len(c.Exporter); n != 0 && n != ExporterSize {
		return [32]byte{}, fmt.Errorf("TLS exporter has %d bytes, want %d or none", n, ExporterSize)
	}
	return [32]byte(sum([]byte{0}, c.Nonce, c.Exporter)), nil
}

// node is an inner node of the tree: SHA-256(0x01 left right).
func node(left, right [32]byte) [32]byte {
	return [32]byte(sum([]byte{1}, left[:], right[:]))
}

// PathStep is one sibling on the way from a leaf to the root.
type PathStep struct {
	// Right says that the sibling stands to the right.
	Right bool
	Hash  [32]byte
}

// MarshalText renders "1:" and the hash in hex for a sibling to the right, "0:" for one to the left.
func (s PathStep) MarshalText() ([]byte, error) {
	side := byte('0')
	if s.Right {
		side = '1'
	}
	return hex.AppendEncode([]byte{side, ':'}, s.Hash[:]), nil
}

// UnmarshalText reads what MarshalText writes, and nothing else.
func (s *PathStep) UnmarshalText(text []byte) error {
	side, digits, ok := strings.Cut(string(text), ":")
	if !ok || side != "0" && side != "1" {
		return fmt.Errorf("path step %q has no side 0: or 1:", shorten(string(text)))
	}
	hash, err := lowerHex(digits, len(s.Hash))
	if err != nil {
		return err
	}
	*s = PathStep{Right: side == "1", Hash: [32]byte(hash)}
	return nil
}

// Root walks from a leaf along its siblings to the root of the tree. Without siblings the leaf is the root.
func Root(leaf [32]byte, path []PathStep) [32]byte {
	for _, step := range path {
		if step.Right {
			leaf = node(leaf, step.Hash)
		} else {
			leaf = node(step.Hash, leaf)
		}
	}
	return leaf
}

// Tree builds the Merkle tree over leaves, and returns its root and every leaf's path, so that one quote answers all of their
// challenges. A node without a sibling rises unchanged. Its cost is one hash a leaf, and a path of log2 n steps for each.
func Tree(leaves [][32]byte) (root [32]byte, paths [][]PathStep, err error) {
	if len(leaves) == 0 {
		return root, nil, errors.New("a tree needs a leaf")
	}
	paths = make([][]PathStep, len(leaves))
	position := make([]int, len(leaves))
	for i := range position {
		position[i] = i
	}
	level := leaves
	for len(level) > 1 {
		for leaf, p := range position {
			if sibling := p ^ 1; sibling < len(level) {
				paths[leaf] = append(paths[leaf], PathStep{Right: sibling > p, Hash: level[sibling]})
			}
			position[leaf] = p / 2
		}
		level = parents(level)
	}
	return level[0], paths, nil
}

// parents returns the level above.
func parents(level [][32]byte) [][32]byte {
	above := make([][32]byte, 0, (len(level)+1)/2)
	for i := 0; i < len(level); i += 2 {
		if i+1 == len(level) {
			above = append(above, level[i])
		} else {
			above = append(above, node(level[i], level[i+1]))
		}
	}
	return above
}
