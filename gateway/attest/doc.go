// Package attest answers for the gateway: the attestation document at /.well-known/attestation of every name, and the paths on
// the gateway's own names.
//
// A platform makes about one quote a second, one after the other, and a stranger may ask for as many as it likes. So callers
// stand in line: challenges about one subject are collected while the quote before is being made, and one quote over their Merkle
// root answers all of them. Whose subject is next goes round the clients. Documents without a challenge are held, and quoted anew in the background before they end. One task,
// [Attester.Run], has quotes made; a caller costs no goroutine but that of its own request.
//
// Everything fails closed: without evidence there is no document.
package attest
