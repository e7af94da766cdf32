package access

import (
	"testing"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// A new RPC must be classified: may a viewer call it?
func TestEveryProcedureIsClassified(t *testing.T) {
	s := controlv1.File_mics_control_v1_control_proto.Services().ByName("ControlService")
	there := map[string]bool{}
	for i := range s.Methods().Len() {
		procedure := "/" + string(s.FullName()) + "/" + string(s.Methods().Get(i).Name())
		there[procedure] = true
		if needs[procedure] == "" {
			t.Errorf("%s: add it to the table in procedures.go", procedure)
		}
	}
	for procedure := range needs {
		if !there[procedure] {
			t.Errorf("%s: there is no such procedure", procedure)
		}
	}
	if needed("/mics.control.v1.ControlService/OfTomorrow") != Operator {
		t.Error("what is not known is open to viewers")
	}
}
