package pipeline

import (
	"slices"

	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
)

// recipient is the user that a single chat is for.
func (m *message) recipient() route.UserKey {
	return route.UserKey{Tenant: m.tenant.Name(), User: m.header.ToUser}
}

// to sets a single chat's recipient.
func (m *message) to(records []route.Record) {
	m.one[0] = dispatch.Recipient{Key: m.recipient(), Records: records}
	m.recipients = m.one[:]
}

// resolveGroup asks who the members are and looks their routes up in chunks.
func (p *Pipeline) resolveGroup(m *message) (failure string) {
	members, err := p.opts.Hooks.Members(m.ctx, m.tenant, m.header.Group)
	m.in.signals.Hook(err)
	switch {
	case err != nil:
		return reasonNoMembers
	case len(members) == 0:
		return reasonEmptyGroup
	case len(members) > p.opts.Limits.GroupMaxUsers:
		return reasonLargeGroup
	}
	m.recipients = make([]dispatch.Recipient, 0, len(members))
	keys := make([]route.UserKey, 0, min(len(members), p.opts.Limits.GroupChunk))
	for chunk := range slices.Chunk(members, p.opts.Limits.GroupChunk) {
		keys = keys[:0]
		for _, user := range chunk {
			if checkID(user, reasonBadRecipient, reasonLongRecipient) != "" {
				m.invalid++
				continue
			}
			keys = append(keys, route.UserKey{Tenant: m.tenant.Name(), User: user})
		}
		found, err := p.opts.Routes.Lookup(m.ctx, keys)
		if err != nil {
			return reasonInternal
		}
		for i, key := range keys {
			m.recipients = append(m.recipients, dispatch.Recipient{Key: key, Records: found[i]})
		}
	}
	return ""
}

// countGroup counts a group message that is about to go out.
func (p *Pipeline) countGroup(m *message) {
	s := p.opts.Stats
	s.GroupMessages.Inc()
	s.GroupMembers.Add(int64(len(m.recipients) + m.invalid))
	nodes := map[route.NodeRef]struct{}{}
	for _, r := range m.recipients {
		for _, rec := range r.Records {
			if rec.State == route.Live {
				nodes[rec.Node] = struct{}{}
			}
		}
	}
	s.GroupNodes.Add(int64(len(nodes)))
}
