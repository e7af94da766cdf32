package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/mics-im/mics/sdk/go/hook"
	"google.golang.org/protobuf/proto"
	_ "modernc.org/sqlite" // the driver
)

// schema: an event may come twice, so that each kind of row knows what it is by
// itself. A message is known by its sender's device, its id and its content: old
// clients number theirs anew in every instance.
const schema = `
CREATE TABLE IF NOT EXISTS messages (
  id INTEGER PRIMARY KEY,
  sender TEXT NOT NULL, device TEXT NOT NULL, msg_id TEXT NOT NULL, raw BLOB NOT NULL,
  conversation TEXT NOT NULL, sent_ms INTEGER NOT NULL, unmoderated INTEGER NOT NULL,
  UNIQUE (sender, device, msg_id, raw)
);
CREATE INDEX IF NOT EXISTS by_conversation ON messages (conversation, id);
CREATE TABLE IF NOT EXISTS missed (
  user TEXT NOT NULL, message INTEGER NOT NULL REFERENCES messages (id), taken INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (user, message)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS users (user TEXT PRIMARY KEY) WITHOUT ROWID;
`

// store is the database. Safe for concurrent use.
type store struct{ db *sql.DB }

func openStore(ctx context.Context, path string) (*store, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(5000)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return nil, err
	}
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return &store{db}, nil
}

func (s *store) close() error { return s.db.Close() }

// add stores events in one transaction. What is there already stays as it is.
func (s *store) add(ctx context.Context, events []*hook.Event) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after a commit
	for _, e := range events {
		if err := addOne(ctx, tx, e); err != nil {
			return fmt.Errorf("store event %s/%d: %w", e.GetNodeId(), e.GetTenantSeq(), err)
		}
	}
	return tx.Commit()
}

func addOne(ctx context.Context, tx *sql.Tx, e *hook.Event) error {
	switch e.GetEventType() {
	case hook.ConnectOnline:
		_, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO users VALUES (?)`, e.GetUserId())
		return err
	case hook.SingleChat, hook.GroupChat:
		_, err := message(ctx, tx, e)
		return err
	case hook.OfflineMessage:
		id, err := message(ctx, tx, e) // normally there already
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT OR IGNORE INTO missed (user, message) VALUES (?, ?)`, e.GetToUserId(), id)
		return err
	}
	return nil // a connection's end, or of a later version
}

// message stores an event's message and returns its row.
func message(ctx context.Context, tx *sql.Tx, e *hook.Event) (id int64, err error) {
	const insert = `INSERT INTO messages (sender, device, msg_id, raw, conversation, sent_ms, unmoderated) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (sender, device, msg_id, raw) DO UPDATE SET unmoderated = unmoderated RETURNING id`
	m := e.Message
	err = tx.QueryRowContext(ctx, insert, m.GetUserId(), m.GetDeviceId(), m.GetMsgId(), e.GetEventData(),
		conversation(m.GetUserId(), m.GetToUserId(), m.GetGroupId()), m.GetTimestampMs(), e.GetUnmoderated()).Scan(&id)
	return id, err
}

// conversation names a group, or a chat in both directions.
func conversation(from, to, group string) string {
	switch {
	case group != "":
		return "group " + group
	case from < to:
		return "chat " + from + " " + to
	default:
		return "chat " + to + " " + from
	}
}

// missedBy returns messages that a user missed, oldest first, behind a row.
func (s *store) missedBy(ctx context.Context, user string, after int64, limit int) (page []*hook.Message, last int64, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT message, raw FROM missed JOIN messages ON id = message
		WHERE user = ? AND taken = 0 AND message > ? ORDER BY message LIMIT ?`, user, after, limit)
	if err != nil {
		return nil, 0, err
	}
	return scan(rows)
}

// taken notes that a user has got what was missed, up to a row.
func (s *store) taken(ctx context.Context, user string, upTo int64) error {
	_, err := s.db.ExecContext(ctx, `UPDATE missed SET taken = 1 WHERE user = ? AND taken = 0 AND message <= ?`, user, upTo)
	return err
}

// history returns the newest messages of a conversation, newest first, before a
// row (0: from the end).
func (s *store) history(ctx context.Context, conversation string, before int64, limit int) (page []*hook.Message, last int64, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, raw FROM messages WHERE conversation = ? AND (? = 0 OR id < ?) ORDER BY id DESC LIMIT ?`,
		conversation, before, before, limit)
	if err != nil {
		return nil, 0, err
	}
	return scan(rows)
}

func scan(rows *sql.Rows) (page []*hook.Message, last int64, err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var raw []byte
		if err := rows.Scan(&last, &raw); err != nil {
			return nil, 0, err
		}
		m := &hook.Message{}
		if err := proto.Unmarshal(raw, m); err != nil {
			return nil, 0, err
		}
		page = append(page, m)
	}
	return page, last, rows.Err()
}

// everybody are the users that were ever online.
func (s *store) everybody(ctx context.Context) (users []string, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT user FROM users ORDER BY user`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var u string
		if err := rows.Scan(&u); err != nil {
			return nil, err
		}
		users = append(users, u)
	}
	return users, rows.Err()
}
