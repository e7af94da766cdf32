package load

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// unmask is what a server makes of a client's frame.
func unmask(t *testing.T, f []byte) []byte {
	t.Helper()
	rd := bareReader{reader{src: bytes.NewReader(f), buf: make([]byte, 16)}}
	p, err := rd.next()
	if err != nil {
		t.Fatalf("%x: %v", f, err)
	}
	return p
}

func TestTemplateIsAMessage(t *testing.T) {
	for _, body := range []int{0, 8, 128, 70, 5000} {
		tmpl := newTemplate("u7", "", 0xabcd, body)
		for seq, stamp := range map[uint32]int64{0: 0, 1: 1, 0xfffffffe: -5, 77: 1 << 60} {
			var f messagev1.ClientFrame
			if err := proto.Unmarshal(unmask(t, tmpl.next(seq, stamp)), &f); err != nil {
				t.Fatal(err)
			}
			m := f.GetMessage()
			want := map[uint32]string{0: "0000abcd00000000", 1: "0000abcd00000001", 0xfffffffe: "0000abcdfffffffe", 77: "0000abcd0000004d"}[seq]
			if m.GetMsgId() != want || m.GetToUserId() != "u7" || len(m.GetMsgBody()) != max(body, stampSize) {
				t.Errorf("body %d: %v", body, m)
			}
			inner, err := proto.Marshal(&messagev1.MessageDelivery{Message: m, Seq: 9})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := stampOf(inner); err != nil || got != stamp {
				t.Errorf("body %d: stamp %d, %v, want %d", body, got, err, stamp)
			}
		}
	}
	var f messagev1.ClientFrame
	if err := proto.Unmarshal(unmask(t, newTemplate("", "g-2-0", 1, 8).next(1, 1)), &f); err != nil {
		t.Fatal(err)
	}
	if m := f.GetMessage(); m.GetMsgType() != messagev1.MessageType_GROUP_CHAT || m.GetGroupId() != "g-2-0" || m.GetToUserId() != "" {
		t.Errorf("%v", m)
	}
}

func TestReaderTakesFramesHoweverTheyCome(t *testing.T) {
	var stream []byte
	var want [][]byte
	for _, n := range []int{0, 1, 125, 126, 127, 300, 1023, 1024, 1025, 70000, 3} {
		p := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, p)
		stream = append(stream, serverFrame(p)...)
	}
	for name, src := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "bytes": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves": iotest.HalfReader(bytes.NewReader(stream)), "with the error": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		rd := reader{src: src, buf: make([]byte, firstRead)}
		for i, w := range want {
			op, got, err := rd.frame()
			if err != nil || op != opBinary || !bytes.Equal(got, w) {
				t.Fatalf("%s: frame %d: op %d, %d bytes, %v", name, i, op, len(got), err)
			}
		}
		if _, _, err := rd.frame(); !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: at the end %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"fragmented": {0x02, 0x00}, "masked": {0x82, 0x80, 0, 0, 0, 0}, "huge": {0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0},
	} {
		rd := reader{src: bytes.NewReader(b), buf: make([]byte, firstRead)}
		if _, _, err := rd.frame(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	rd := reader{src: bytes.NewReader(serverFrame([]byte("cut"))[:4]), buf: make([]byte, firstRead)}
	if _, _, err := rd.frame(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
}
