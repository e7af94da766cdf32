package view

import (
	"fmt"
	"strconv"

	"github.com/mics-im/mics/ctl/internal/output"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// Letters is a list of dead letters.
type Letters struct {
	Letters []Letter `json:"letters"`
	// Truncated: there are more than the limit.
	Truncated bool `json:"truncated"`
}

// Letter is one dead letter. Fields of the event are empty where the record is
// none.
type Letter struct {
	// ID is its place in the dead letter topic, PARTITION/OFFSET.
	ID         string `json:"id"`
	GivenUpAt  string `json:"givenUpAt,omitempty"`
	GivenUpBy  string `json:"givenUpBy"`
	Reason     string `json:"reason"`
	Key        string `json:"key"`
	Type       string `json:"eventType"`
	HappenedAt string `json:"happenedAt,omitempty"`
	MsgID      string `json:"msgId"`
	User       string `json:"userId"`
	Device     string `json:"deviceId"`
	ToUser     string `json:"toUserId"`
	Group      string `json:"groupId"`
	TraceID    string `json:"traceId,omitempty"`
	// NodeID and TenantSeq are the event's number; the latter may exceed 2^53,
	// which a JSON number does not survive everywhere.
	NodeID      string `json:"nodeId"`
	TenantSeq   string `json:"tenantSeq"`
	Signed      bool   `json:"signed"`
	Unmoderated bool   `json:"unmoderated"`
	DataBytes   uint32 `json:"dataBytes"`
}

// NewLetters converts an answer.
func NewLetters(letters []*routerv1.DeadLetter, truncated bool) Letters {
	v := Letters{Letters: make([]Letter, 0, len(letters)), Truncated: truncated}
	for _, l := range letters {
		v.Letters = append(v.Letters, NewLetter(l))
	}
	return v
}

// NewLetter converts one.
func NewLetter(l *routerv1.DeadLetter) Letter {
	e := l.GetEvent()
	return Letter{
		ID: fmt.Sprintf("%d/%d", l.GetPartition(), l.GetOffset()), GivenUpAt: output.Time(l.GetTimeMs()), GivenUpBy: l.GetNodeId(),
		Reason: l.GetReason(), Key: l.GetKey(), Type: EventType(e), HappenedAt: output.Time(e.GetTimestamp()), MsgID: e.GetMsgId(),
		User: e.GetUserId(), Device: e.GetDeviceId(), ToUser: e.GetToUserId(), Group: e.GetGroupId(), TraceID: e.GetTraceId(),
		NodeID: e.GetNodeId(), TenantSeq: strconv.FormatUint(e.GetTenantSeq(), 10), Signed: e.GetSign() != "",
		Unmoderated: e.GetUnmoderated(), DataBytes: l.GetDataBytes(),
	}
}

// EventType names an event's type; "unknown" for what is no event, or of a type
// that this micsctl is too old to know.
func EventType(e *hookv1.MqEvent) string {
	name, ok := hookv1.EventType_name[int32(e.GetEventType())]
	if e == nil || !ok {
		return "unknown"
	}
	return name
}

// Redrive is the outcome of a redrive.
type Redrive struct {
	DryRun bool   `json:"dryRun"`
	Total  uint64 `json:"total"`
	Read   uint64 `json:"read"`
	Sent   uint64 `json:"sent"`
	Dead   uint64 `json:"dead"`
	Failed uint64 `json:"failed"`
	Done   bool   `json:"done"`
}

// NewRedrive converts the last progress.
func NewRedrive(p *routerv1.RedriveProgress, dry bool) Redrive {
	return Redrive{
		DryRun: dry, Total: p.GetTotal(), Read: p.GetRead(), Sent: p.GetSent(), Dead: p.GetDead(), Failed: p.GetFailed(), Done: p.GetDone(),
	}
}
