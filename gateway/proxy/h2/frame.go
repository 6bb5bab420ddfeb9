package h2

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2"
)

const (
	frameHead = 9
	maxFrame  = 16 << 10 // payload, both ways: nobody is allowed more (RFC 9113 section 4.2)
	maxWindow = 1<<31 - 1
)

// frame is one frame in the buffer that it was read into.
type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	stream  uint32
	payload []byte
}

// connError ends the connection (RFC 9113 section 5.4.1).
type connError struct {
	code http2.ErrCode
	why  string
}

func (e *connError) Error() string { return fmt.Sprintf("%v: %s", e.code, e.why) }

func broken(code http2.ErrCode, why string) *connError { return &connError{code, why} }

// parseFrame reads the frame that p begins with and returns its whole length, 0 when it is not complete.
func parseFrame(p []byte) (f frame, n int, err *connError) {
	if len(p) < frameHead {
		return frame{}, 0, nil
	}
	length := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	if length > maxFrame {
		return frame{}, 0, broken(http2.ErrCodeFrameSize, "a frame is longer than allowed")
	}
	n = frameHead + length
	if len(p) < n {
		return frame{}, 0, nil
	}
	f = frame{
		kind: http2.FrameType(p[3]), flags: http2.Flags(p[4]), stream: binary.BigEndian.Uint32(p[5:]) & maxWindow, payload: p[frameHead:n:n],
	}
	return f, n, nil
}

// unpad removes the padding of a DATA or HEADERS frame.
func (f *frame) unpad() *connError {
	if f.flags&http2.FlagDataPadded == 0 {
		return nil
	}
	if len(f.payload) == 0 || int(f.payload[0]) >= len(f.payload) {
		return broken(http2.ErrCodeProtocol, "the padding is longer than the frame")
	}
	f.payload = f.payload[1 : len(f.payload)-int(f.payload[0])]
	return nil
}

func appendHead(out []byte, length int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	out = append(out, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(out, stream)
}

func appendData(out []byte, stream uint32, p []byte, end bool) []byte {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	return append(appendHead(out, len(p), http2.FrameData, flags, stream), p...)
}

// appendBlock appends a header block as HEADERS and as many CONTINUATION frames as it takes.
func appendBlock(out []byte, stream uint32, block []byte, end bool) []byte {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= http2.FlagHeadersEndHeaders
		}
		out = append(appendHead(out, n, kind, flags, stream), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return out
		}
		kind, flags = http2.FrameContinuation, 0
	}
}

func appendReset(out []byte, stream uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendHead(out, 4, http2.FrameRSTStream, 0, stream), uint32(code))
}

func appendUpdate(out []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendHead(out, 4, http2.FrameWindowUpdate, 0, stream), uint32(n))
}

func appendGoAway(out []byte, last uint32, code http2.ErrCode, why string) []byte {
	out = appendHead(out, 8+len(why), http2.FrameGoAway, 0, 0)
	out = binary.BigEndian.AppendUint32(out, last)
	out = binary.BigEndian.AppendUint32(out, uint32(code))
	return append(out, why...)
}

func appendPing(out []byte, ack bool, data []byte) []byte {
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	return append(appendHead(out, 8, http2.FramePing, flags, 0), data...)
}

// settingNoPriorities tells that the engine takes no notice of RFC 7540's priorities (RFC 9218 section 2.1).
const settingNoPriorities http2.SettingID = 9

func appendSettings(out []byte, settings ...http2.Setting) []byte {
	out = appendHead(out, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		out = binary.BigEndian.AppendUint16(out, uint16(s.ID))
		out = binary.BigEndian.AppendUint32(out, s.Val)
	}
	return out
}
