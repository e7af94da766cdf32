package recall

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var phone = route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}

// keys returns n keys, all of one age.
func keys(n int, age byte) (k Keys) {
	for i := range n {
		k.Keys = append(k.Keys, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, keySize/2)...)
		k.Ages = append(k.Ages, age)
	}
	return k
}

func TestKeysAgeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(func(int) { t.Error("forgot something") })
		m.Ended(phone, keys(2, 10))
		time.Sleep(3500 * time.Millisecond) // fake time
		if got := m.Of(phone); !bytes.Equal(got.Keys, keys(2, 0).Keys) || !bytes.Equal(got.Ages, []byte{14, 14}) {
			t.Errorf("kept %v", got)
		}
		other := Keys{Keys: bytes.Repeat([]byte{9}, keySize), Ages: []byte{0}}
		m.Ended(phone, other)
		m.Learn(phone, keys(2, 0)) // known
		if got := m.Of(phone); !bytes.Equal(got.Ages, []byte{14, 14, 0}) {
			t.Errorf("of two sessions: ages %v", got.Ages)
		}
		time.Sleep(32 * time.Second) // fake time
		if got := m.Of(phone); !bytes.Equal(got.Ages, []byte{32}) {
			t.Errorf("later: ages %v", got.Ages)
		}
		time.Sleep(13 * time.Second) // fake time
		if got := m.Of(phone); len(got.Ages) != 0 || m.keys != 0 || len(m.order) != 0 || len(m.devices) != 0 {
			t.Errorf("too old: %v, %d keys", got, m.keys)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	forgot := 0
	m := New(func(n int) { forgot += n })
	m.Ended(phone, keys(most+3, 0))
	if got := m.Of(phone); len(got.Ages) != most || !bytes.Equal(got.Keys[:keySize], keys(4, 0).Keys[3*keySize:]) {
		t.Errorf("%d keys of one device", len(got.Ages))
	}
	for i := range total / most {
		m.Ended(route.DeviceKey{UserKey: phone.UserKey, Device: fmt.Sprint(i)}, keys(most, 0))
	}
	if m.keys != total || forgot != most || len(m.Of(phone).Ages) != 0 {
		t.Errorf("%d keys, %d forgotten", m.keys, forgot)
	}
}

func TestFromWire(t *testing.T) {
	k := keys(2, 3)
	for _, c := range []struct {
		name       string
		keys, ages []byte
		want       []byte
	}{
		{"whole", k.Keys, k.Ages, []byte{3, 3}},
		{"no ages", k.Keys, nil, []byte{15, 15}},
		{"too few ages", k.Keys, []byte{1}, []byte{1, 15}},
		{"too many ages", k.Keys, []byte{1, 2, 3}, []byte{1, 2}},
		{"half a key", append(k.Keys[:len(k.Keys):len(k.Keys)], "rest"...), k.Ages, []byte{3, 3}},
		{"nothing", nil, nil, nil},
	} {
		if got := FromWire(c.keys, c.ages); !bytes.Equal(got.Ages, c.want) || len(got.Keys) != len(c.want)*keySize {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
