package access

import "github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"

// needs is the role that each procedure of ControlService takes. A test fails when
// one is missing; until then it takes an operator.
//
// Dead letters hold messages of the tenants' users: who may see them may do harm
// enough to be an operator.
var needs = map[string]Role{
	controlv1connect.ControlServiceListNodesProcedure:     Viewer,
	controlv1connect.ControlServiceWatchNodesProcedure:    Viewer,
	controlv1connect.ControlServiceListSessionsProcedure:  Viewer,
	controlv1connect.ControlServiceListDrainsProcedure:    Viewer,
	controlv1connect.ControlServiceWatchDrainsProcedure:   Viewer,
	controlv1connect.ControlServiceRehearseDrainProcedure: Viewer,
	controlv1connect.ControlServiceGetCanaryProcedure:     Viewer,
	controlv1connect.ControlServiceWatchCanaryProcedure:   Viewer,
	controlv1connect.ControlServiceListAuditProcedure:     Viewer,
	controlv1connect.ControlServiceVersionProcedure:       Viewer,

	controlv1connect.ControlServiceKickProcedure:         Operator,
	controlv1connect.ControlServiceDrainProcedure:        Operator,
	controlv1connect.ControlServiceUndrainProcedure:      Operator,
	controlv1connect.ControlServiceChangeDrainProcedure:  Operator,
	controlv1connect.ControlServiceListDLQProcedure:      Operator,
	controlv1connect.ControlServiceRedriveDLQProcedure:   Operator,
	controlv1connect.ControlServiceStartCanaryProcedure:  Operator,
	controlv1connect.ControlServiceChangeCanaryProcedure: Operator,
	controlv1connect.ControlServiceRebalanceProcedure:    Operator,
}

func needed(procedure string) Role {
	if r, ok := needs[procedure]; ok {
		return r
	}
	return Operator
}
