package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2"

	"dstack.host/gateway/proxy/h1"
)

func calm(why string) *connError { return broken(http2.ErrCodeEnhanceYourCalm, why) }

// handle does what a frame asks for.
func (c *conn) handle(f *frame) *connError {
	switch {
	case !c.settled && (f.kind != http2.FrameSettings || f.flags&http2.FlagSettingsAck != 0):
		return broken(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
	case c.blockFor.stream != 0 && (f.kind != http2.FrameContinuation || f.stream != c.blockFor.stream):
		return broken(http2.ErrCodeProtocol, "a head is interrupted")
	}
	switch f.kind {
	case http2.FrameHeaders:
		return c.onHeaders(f)
	case http2.FrameContinuation:
		return c.onContinuation(f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f.kind {
	case http2.FrameData:
		return c.onData(f)
	case http2.FrameWindowUpdate:
		return c.onUpdate(f)
	case http2.FrameRSTStream:
		return c.onReset(f)
	}
	if !c.budgets.control.spend() {
		return calm("too many frames that ask for nothing")
	}
	switch f.kind {
	case http2.FrameSettings:
		return c.onSettings(f)
	case http2.FramePing:
		return c.onPing(f)
	case http2.FramePriority:
		return c.onPriority(f)
	case http2.FramePushPromise:
		return broken(http2.ErrCodeProtocol, "a client pushes")
	case http2.FrameGoAway:
		return c.onGoAway(f)
	}
	return nil // RFC 9113 section 5.5
}

// onSettings takes the client's settings (RFC 9113 section 6.5).
func (c *conn) onSettings(f *frame) *connError {
	switch {
	case f.stream != 0:
		return broken(http2.ErrCodeProtocol, "SETTINGS of a stream")
	case f.flags&http2.FlagSettingsAck != 0 && len(f.payload) > 0, len(f.payload)%6 != 0:
		return broken(http2.ErrCodeFrameSize, "SETTINGS of a wrong size")
	case f.flags&http2.FlagSettingsAck != 0:
		c.settingBy = 0
		return nil
	}
	for p := f.payload; len(p) > 0; p = p[6:] {
		if err := c.set(http2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	c.settled = true
	c.takeOut()
	c.out = appendHead(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}

func (c *conn) set(id http2.SettingID, v uint32) *connError {
	switch id {
	case http2.SettingEnablePush, http2.SettingEnableConnectProtocol, settingNoPriorities:
		if v > 1 {
			return broken(http2.ErrCodeProtocol, "a setting is neither 0 nor 1")
		}
	case http2.SettingMaxFrameSize:
		if v < maxFrame || v > 1<<24-1 {
			return broken(http2.ErrCodeProtocol, "the maximum frame size is out of range")
		}
	case http2.SettingInitialWindowSize:
		if v > maxWindow {
			return broken(http2.ErrCodeFlowControl, "the initial window is out of range")
		}
		change := int64(v) - c.initialWindow
		c.initialWindow = int64(v)
		for _, s := range c.streams {
			if s.sendWindow += change; s.sendWindow > maxWindow {
				return broken(http2.ErrCodeFlowControl, "the initial window makes a window too large")
			}
			s.nudge()
		}
	}
	return nil
}

func (c *conn) onPing(f *frame) *connError {
	switch {
	case f.stream != 0:
		return broken(http2.ErrCodeProtocol, "PING of a stream")
	case len(f.payload) != 8:
		return broken(http2.ErrCodeFrameSize, "PING of a wrong size")
	case f.flags&http2.FlagPingAck == 0:
		c.takeOut()
		c.out = appendPing(c.out, true, f.payload)
	case c.farewell == announced && [8]byte(f.payload) == farewellPing:
		c.depart()
	}
	return nil
}

// onPriority checks what it then ignores.
func (c *conn) onPriority(f *frame) *connError {
	switch {
	case f.stream == 0:
		return broken(http2.ErrCodeProtocol, "PRIORITY of no stream")
	case len(f.payload) != 5:
		return c.breach(f.stream, http2.ErrCodeFrameSize)
	case binary.BigEndian.Uint32(f.payload)&maxWindow == f.stream:
		return c.breach(f.stream, http2.ErrCodeProtocol)
	}
	return nil
}

func (c *conn) onGoAway(f *frame) *connError {
	if f.stream != 0 {
		return broken(http2.ErrCodeProtocol, "GOAWAY of a stream")
	}
	if len(f.payload) < 8 {
		return broken(http2.ErrCodeFrameSize, "GOAWAY of a wrong size")
	}
	c.farewell = leaving // it closes when the last request is answered, or the client does
	c.leaveIfDone()
	return nil
}

// breach is a stream error (RFC 9113 section 5.4.2).
func (c *conn) breach(id uint32, code http2.ErrCode) *connError {
	if !c.budgets.resets.spend() {
		return calm("too many streams are broken or given up")
	}
	if s := c.streams[id]; s != nil {
		s.refs++
		s.outcome.Reason = h1.Malformed
		c.reset(s, code)
		c.unref(s)
		return nil
	}
	if !c.remembered(id) {
		c.takeOut()
		c.out = appendReset(c.out, id, code)
		c.remember(id)
	}
	return nil
}

func (c *conn) onReset(f *frame) *connError {
	switch {
	case len(f.payload) != 4:
		return broken(http2.ErrCodeFrameSize, "RST_STREAM of a wrong size")
	case f.stream == 0, f.stream > c.lastID:
		return broken(http2.ErrCodeProtocol, "RST_STREAM of an idle stream")
	case !c.budgets.resets.spend():
		return calm("too many streams are broken or given up")
	}
	if s := c.streams[f.stream]; s != nil {
		s.refs++
		if s.outcome.Reason == "" {
			s.outcome.Reason = h1.ClientGone
		}
		c.kill(s)
		c.unref(s)
	}
	return nil
}

func (c *conn) onUpdate(f *frame) *connError {
	if len(f.payload) != 4 {
		return broken(http2.ErrCodeFrameSize, "WINDOW_UPDATE of a wrong size")
	}
	if !c.budgets.updates.spend() {
		return calm("too many WINDOW_UPDATEs")
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	if f.stream == 0 {
		if n == 0 {
			return broken(http2.ErrCodeProtocol, "WINDOW_UPDATE of nothing")
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return broken(http2.ErrCodeFlowControl, "the connection's window is too large")
		}
		for _, s := range c.streams {
			s.nudge()
		}
		return nil
	}
	if f.stream > c.lastID {
		return broken(http2.ErrCodeProtocol, "WINDOW_UPDATE of an idle stream")
	}
	s := c.streams[f.stream]
	switch {
	case s == nil: // it may have been on its way
	case n == 0:
		return c.breach(f.stream, http2.ErrCodeProtocol)
	case s.sendWindow+n > maxWindow:
		return c.breach(f.stream, http2.ErrCodeFlowControl)
	default:
		s.sendWindow += n
		s.nudge()
	}
	return nil
}

// onData takes a piece of a request body.
func (c *conn) onData(f *frame) *connError {
	size := len(f.payload)
	end := f.flags&http2.FlagDataEndStream != 0
	if f.stream == 0 || f.stream > c.lastID {
		return broken(http2.ErrCodeProtocol, "DATA of an idle stream")
	}
	if c.recvWindow -= int64(size); c.recvWindow < 0 {
		return broken(http2.ErrCodeFlowControl, "more DATA than the connection's window")
	}
	if err := f.unpad(); err != nil {
		return err
	}
	if len(f.payload) == 0 && !end && !c.budgets.control.spend() {
		return calm("too many empty frames")
	}
	s := c.streams[f.stream]
	if s == nil || s.remoteDone {
		c.repay(nil, size)
		if s == nil && c.remembered(f.stream) {
			return nil
		}
		return c.breach(f.stream, http2.ErrCodeStreamClosed)
	}
	if s.recvWindow -= int64(size); s.recvWindow < 0 {
		c.repay(nil, size)
		return c.breach(f.stream, http2.ErrCodeFlowControl)
	}
	if s.left >= 0 {
		s.left -= int64(len(f.payload))
		if s.left < 0 || end && s.left != 0 {
			c.repay(nil, size)
			return c.breach(f.stream, http2.ErrCodeProtocol)
		}
	}
	s.outcome.Received += int64(len(f.payload))
	s.touch()
	if s.deaf {
		c.repay(s, size)
	} else {
		c.repay(s, size-len(f.payload))
		s.body = append(s.body, f.payload...)
		s.credit += len(f.payload)
	}
	if end {
		s.remoteDone = true
	}
	s.feed()
	return nil
}

// onHeaders takes a head, or the beginning of one.
func (c *conn) onHeaders(f *frame) *connError {
	if f.stream == 0 {
		return broken(http2.ErrCodeProtocol, "HEADERS of no stream")
	}
	if err := f.unpad(); err != nil {
		return err
	}
	selfish := false
	if f.flags&http2.FlagHeadersPriority != 0 {
		if len(f.payload) < 5 {
			return broken(http2.ErrCodeProtocol, "HEADERS of a wrong size")
		}
		selfish = binary.BigEndian.Uint32(f.payload)&maxWindow == f.stream
		f.payload = f.payload[5:]
	}
	if f.flags&http2.FlagHeadersEndHeaders != 0 {
		return c.onBlock(f.stream, f.flags&http2.FlagHeadersEndStream != 0, selfish, f.payload)
	}
	c.block = append(c.block[:0], f.payload...)
	c.blockFor = *f
	c.blockFor.payload = nil
	if !selfish {
		c.blockFor.flags &^= http2.FlagHeadersPriority
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blockBy = c.tick + c.engine.ticks(c.cfg.HeadTimeout)
	c.startTicking()
	return nil
}

func (c *conn) onContinuation(f *frame) *connError {
	if c.blockFor.stream == 0 {
		return broken(http2.ErrCodeProtocol, "CONTINUATION of nothing")
	}
	if len(c.block)+len(f.payload) > 2*c.cfg.HeadLimit {
		return calm("a head is far longer than allowed")
	}
	c.block = append(c.block, f.payload...)
	if f.flags&http2.FlagContinuationEndHeaders == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(f.payload) < tiny && !c.budgets.control.spend() {
			return calm("a head comes in dribbles")
		}
		return nil
	}
	first := c.blockFor
	c.blockFor = frame{}
	c.mu.Lock()
	c.blockBy = 0
	c.mu.Unlock()
	return c.onBlock(first.stream, first.flags&http2.FlagHeadersEndStream != 0, first.flags&http2.FlagHeadersPriority != 0, c.block)
}

// decode reads a header block into req; nil keeps only the decoder up to date.
func (c *conn) decode(block []byte, req *h1.Request, trailer bool) *connError {
	c.head.start(req, trailer)
	if _, err := c.dec.Write(block); err != nil {
		return broken(http2.ErrCodeCompression, err.Error())
	}
	if err := c.dec.Close(); err != nil {
		return broken(http2.ErrCodeCompression, err.Error())
	}
	return nil
}

// onBlock takes a whole head; selfish says that it makes its stream depend on itself.
func (c *conn) onBlock(id uint32, end, selfish bool, block []byte) *connError {
	c.mu.Lock()
	s := c.streams[id]
	known := id <= c.lastID
	c.mu.Unlock()
	switch {
	case s != nil:
		return c.onTrailers(id, end, block)
	case id%2 == 0:
		return broken(http2.ErrCodeProtocol, "a client's stream has an even number")
	case known:
		return c.onLateBlock(id, block)
	}
	return c.onRequest(id, end, selfish, block)
}

// onLateBlock takes a head of a stream that is over.
func (c *conn) onLateBlock(id uint32, block []byte) *connError {
	if err := c.decode(block, nil, true); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.remembered(id) {
		return broken(http2.ErrCodeStreamClosed, "HEADERS of a closed stream, or of one with a number that is too low")
	}
	return nil
}

// onTrailers takes the trailer section that ends a request.
func (c *conn) onTrailers(id uint32, end bool, block []byte) *connError {
	if c.head.trailers == nil {
		c.head.trailers = new(h1.Request)
	}
	t := c.head.trailers
	t.Start(c.addr)
	if err := c.decode(block, t, true); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	switch {
	case s == nil:
		return nil // it ended meanwhile
	case s.remoteDone:
		return c.breach(id, http2.ErrCodeStreamClosed)
	case !end, c.head.malformed != "", c.head.tooLarge, s.left > 0:
		return c.breach(id, http2.ErrCodeProtocol)
	}
	s.trailers = t.Trailers(s.trailers[:0])
	s.remoteDone = true
	s.touch()
	s.feed()
	return nil
}

// onRequest takes the head that opens a stream.
func (c *conn) onRequest(id uint32, end, selfish bool, block []byte) *connError {
	s := c.begin(id, end)
	defer s.drop()
	if err := c.decode(block, &s.req.Request, false); err != nil {
		s.outcome.Reason = h1.Malformed
		return err
	}
	e := c.head.complete(&s.req, end)
	c.mu.Lock()
	c.lastID = id
	switch {
	case c.farewell == leaving: // the client learns from GOAWAY that nothing was done
		defer c.mu.Unlock()
		return nil
	case len(c.streams) >= c.cfg.MaxStreams:
		defer c.mu.Unlock()
		s.outcome.Reason = h1.TooLarge
		return c.breach(id, http2.ErrCodeRefusedStream)
	case selfish, c.head.malformed != "":
		defer c.mu.Unlock()
		s.outcome.Reason = h1.Malformed
		return c.breach(id, http2.ErrCodeProtocol)
	}
	if s.req.ContentLength > 0 {
		s.left = s.req.ContentLength
	}
	if s.req.ContentLength == 0 && !end && s.req.Protocol == "" {
		s.left = 0
	}
	c.enter(s)
	c.mu.Unlock()
	if e != nil {
		c.answerLater(s, nil, e)
		return nil
	}
	c.route(s)
	return nil
}
