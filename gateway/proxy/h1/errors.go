package h1

import (
	"fmt"
	"net/http"
)

// Reason says in one word why a request failed. It is also a metric label: the values below are all there are.
type Reason string

const (
	Malformed          Reason = "request_malformed"      // the head or the body breaks RFC 9112, or could be read in two ways: 400
	TooLarge           Reason = "request_too_large"      // request line 414, fields 431, or body of a gateway's own resource 413
	RequestTimeout     Reason = "request_timeout"        // the head or the body did not arrive in time: 408
	VersionUnsupported Reason = "version_unsupported"    // 505
	MethodUnsupported  Reason = "method_unsupported"     // CONNECT, or a method of absurd length: 501
	CodingUnsupported  Reason = "coding_unsupported"     // a transfer coding other than chunked: 501
	ExpectationFailed  Reason = "expectation_failed"     // Expect with anything but 100-continue: 417
	DialFailed         Reason = "app_dial_failed"        // Backend.Dial returned Error.Err: 502
	AppClosed          Reason = "app_closed"             // the app closed before its response began: 502
	AppMalformed       Reason = "app_response_malformed" // the app's response breaks RFC 9112: 502, or a cut connection
	AppTruncated       Reason = "app_truncated"          // the app closed within its response: a cut connection
	AppTimeout         Reason = "app_timeout"            // the app did not answer in time: 504, or a cut connection
	ClientGone         Reason = "client_gone"            // the client closed or stopped reading: no reply
	Internal           Reason = "internal_error"         // a handler of the gateway panicked: 500
)

// Error is why a request could not be served.
type Error struct {
	Status int // of the reply that fits; 0 when none can be sent
	Reason Reason
	Err    error // what exactly
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }

func (e *Error) Unwrap() error { return e.Err }

// fault is the kind of error that parsing produces.
type fault string

func (f fault) Error() string { return string(f) }

func refuse(status int, reason Reason, why error) *Error {
	return &Error{Status: status, Reason: reason, Err: why}
}

func malformed(why fault) *Error { return refuse(http.StatusBadRequest, Malformed, why) }

func appFault(why error) *Error { return refuse(http.StatusBadGateway, AppMalformed, why) }
