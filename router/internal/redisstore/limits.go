package redisstore

import (
	"context"
	"fmt"
	"net/url"
	"strconv"

	"github.com/mics-im/mics/router/internal/route"
)

func tenantKey(tenant, what string) string {
	return "mics:{" + url.QueryEscape(tenant) + "}:" + what
}

func countField(n route.NodeRef) string {
	return url.QueryEscape(n.ID) + "/" + strconv.FormatUint(n.Incarnation, 10)
}

// AcquireConn implements route.Store.
func (s *Store) AcquireConn(ctx context.Context, tenant string, node route.NodeRef, limit int, live []route.NodeRef) (bool, int, error) {
	args := make([]string, 0, 3+len(live))
	args = append(args, countField(node), strconv.Itoa(limit), strconv.FormatInt(route.Millis(route.CountMemory), 10))
	for _, n := range live {
		args = append(args, countField(n))
	}
	res, err := s.acquire.exec(ctx, s, run{key: tenantKey(tenant, "conns"), args: args}).AsIntSlice()
	if err == nil && len(res) != 2 {
		err = fmt.Errorf("%d values instead of 2", len(res))
	}
	if err != nil {
		return false, 0, unavailable("count a connection", err)
	}
	return res[0] == 1, int(res[1]), nil
}

// ReleaseConns implements route.Store.
func (s *Store) ReleaseConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	if n <= 0 {
		return nil
	}
	args := []string{countField(node), strconv.Itoa(n)}
	return unavailable("give connections back", s.release.exec(ctx, s, run{key: tenantKey(tenant, "conns"), args: args}).Error())
}

// SetConns implements route.Store.
func (s *Store) SetConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	args := []string{countField(node), strconv.Itoa(n)}
	return unavailable("set connections", s.setConns.exec(ctx, s, run{key: tenantKey(tenant, "conns"), args: args}).Error())
}

// LeaseTokens implements route.Store.
func (s *Store) LeaseTokens(ctx context.Context, tenant string, rate, want int) (int, error) {
	if rate <= 0 || want <= 0 {
		return 0, nil
	}
	n, err := s.tokens.exec(ctx, s, run{key: tenantKey(tenant, "rate"), args: []string{strconv.Itoa(rate), strconv.Itoa(want)}}).AsInt64()
	return int(n), unavailable("lease tokens", err)
}
