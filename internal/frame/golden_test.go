package frame

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// golden reads vectors of the outside contract (proto/testdata/README.md).
func golden(t testing.TB, file string) (frames map[string][]byte) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "proto", "testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct{ Name, Message, Hex string }
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	frames = map[string][]byte{}
	for _, v := range vectors {
		if v.Message != "mics.message.v1.ClientFrame" {
			continue
		}
		if frames[v.Name], err = hex.DecodeString(v.Hex); err != nil {
			t.Fatal(err)
		}
	}
	if len(frames) == 0 {
		t.Fatalf("%s has no client frames", file)
	}
	return frames
}

func TestGoldenFramesPass(t *testing.T) {
	for name, b := range golden(t, "frames.json") {
		t.Run(name, func(t *testing.T) {
			var want messagev1.ClientFrame
			if err := proto.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			checkClient(t, b)
			c, err := ParseClient(b)
			if err != nil {
				t.Fatal(err)
			}
			if want.GetMessage() != nil && c.Kind != Message {
				t.Fatalf("kind %d", c.Kind)
			}
			if c.Kind == Message {
				checkStamp(t, c.Message)
			}
		})
	}
}

func TestGoldenInvalidFramesAreRefused(t *testing.T) {
	for name, b := range golden(t, "invalid.json") {
		c, err := ParseClient(b)
		if err == nil && c.Kind == Message {
			_, _, err = AppendMessage(nil, c.Message, stamp)
		}
		if err == nil {
			t.Errorf("%s: %x passes", name, b)
		}
	}
}
