package redisconn

import (
	"slices"
	"strings"
	"testing"
)

func TestConnectionStrings(t *testing.T) {
	type want struct {
		hosts          []string
		user, password string
		db             int
		name           string // of the client
		set            string // Sentinel's
		tls            bool
		tlsHost        string
	}
	for in, w := range map[string]want{
		// StackExchange forms
		"127.0.0.1:6380":         {hosts: []string{"127.0.0.1:6380"}},
		"redis":                  {hosts: []string{"redis:6379"}},
		"::1":                    {hosts: []string{"[::1]:6379"}},
		"[::1]":                  {hosts: []string{"[::1]:6379"}},
		"[::1]:6380":             {hosts: []string{"[::1]:6380"}},
		"a:1, b:2,,password=p=q": {hosts: []string{"a:1", "b:2"}, password: "p=q"},
		"a:1,PassWord=p,USER=u,defaultDatabase=3,name=n": {hosts: []string{"a:1"}, user: "u", password: "p", db: 3, name: "n"},
		"a:1,password=":              {hosts: []string{"a:1"}},
		"a:1,password=x://y:z@b/?#%": {hosts: []string{"a:1"}, password: "x://y:z@b/?#%"},
		"password=p,a:1":             {hosts: []string{"a:1"}, password: "p"},
		"a:1,abortConnect=false,connectTimeout=5000,syncTimeout=1,keepAlive=60,allowAdmin=true": {hosts: []string{"a:1"}},
		"a:1,ssl=true":            {hosts: []string{"a:1"}, tls: true},
		"a:1,sslHost=h,ssl=True":  {hosts: []string{"a:1"}, tls: true, tlsHost: "h"},
		"a:1,ssl=false,sslHost=h": {hosts: []string{"a:1"}},
		"s1:26379,s2:26379,serviceName=mics,defaultDatabase=2": {hosts: []string{"s1:26379", "s2:26379"}, set: "mics", db: 2},
		// URL forms
		"redis://localhost":                           {hosts: []string{"localhost:6379"}},
		"redis://localhost:7000/":                     {hosts: []string{"localhost:7000"}},
		"redis://u:p%40%3A%2F@localhost:7000/2":       {hosts: []string{"localhost:7000"}, user: "u", password: "p@:/", db: 2},
		"redis://:p@localhost?db=4&client_name=n":     {hosts: []string{"localhost:6379"}, password: "p", db: 4, name: "n"},
		"redis://a:1?addr=b:2&addr=c:3":               {hosts: []string{"a:1", "b:2", "c:3"}},
		"redis://s1:26379?addr=s2:26379&master_set=m": {hosts: []string{"s1:26379", "s2:26379"}, set: "m"},
		"rediss://h:1":                                {hosts: []string{"h:1"}, tls: true, tlsHost: "h"},
		"redis://[::1]:6380":                          {hosts: []string{"[::1]:6380"}},
		"redis://s1?master_set=m&db=1&addr=s2":        {hosts: []string{"s1:6379", "s2:6379"}, set: "m", db: 1},
	} {
		opt, err := Parse(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		got := want{opt.InitAddress, opt.Username, opt.Password, opt.SelectDB, opt.ClientName, opt.Sentinel.MasterSet, opt.TLSConfig != nil, ""}
		if got.tls {
			got.tlsHost = opt.TLSConfig.ServerName
		}
		hosts := slices.Equal(got.hosts, w.hosts)
		got.hosts, w.hosts = nil, nil
		if !hosts || got.user != w.user || got.password != w.password || got.db != w.db || got.name != w.name || got.set != w.set ||
			got.tls != w.tls || got.tlsHost != w.tlsHost {
			t.Errorf("%q: %v, %+v", in, opt.InitAddress, got)
		}
		if opt.Dialer.Timeout != dialTimeout || opt.DisableCache || !opt.AlwaysPipelining {
			t.Errorf("%q: bounds of %+v", in, opt)
		}
		if w.set != "" && (opt.Sentinel.Dialer.Timeout != dialTimeout || opt.Sentinel.TopologyRefreshInterval == 0) {
			t.Errorf("%q: bounds of %+v", in, opt.Sentinel)
		}
	}
}

func TestConnectionStringsThatAreRefused(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "no host:port",
		"password=hunter2":          "no host:port",
		"a:1,tieBreaker=x":          `"tiebreaker"`,
		"a:1,defaultDatabase=x":     "defaultdatabase: must be a whole number",
		"a:1,defaultDatabase=-1":    "negative",
		"a:1,b:1,defaultDatabase=1": "Cluster",
		"a:1,ssl=perhaps":           "ssl: must be true or false",
		"a:0":                       "host:port",
		"a:x":                       "host:port",
		":1":                        "host:port",
		"a b":                       "host:port",
		"user@host":                 "host:port",
		"http://a":                  `"http"`,
		"redis://a/x":               "whole number",
		"redis://a/1/2":             "whole number",
		"redis://a?db=x":            "whole number",
		"redis://a?db=-1":           "negative",
		"redis://a?addr=b&db=1":     "Cluster",
		"redis://":                  "no host",
		"redis://:6379":             "no host",
		"redis://a?addr=":           "addr: not host:port",
		"redis://a?addr=b:c":        "addr: not host:port",
		"redis://a?protocol=2":      `"protocol"`,
		"redis://a:b:c":             "percent-encoded",
		// A password that is not what its form wants: none of it may be told.
		"a:1,password=hunt,er2":                        "comma",
		"a:1,password=hunt,er2=er2":                    "comma",
		"a:1,password=x,hunt:er2":                      "comma",
		"a:1,password=hunter2,defaultDatabase=hunter2": "whole number",
		"a:1,password=hunter2,ssl=hunter2":             "true or false",
		"hunter2@a:1":                                  "host:port",
		"redis://u:hunter2 @a:1":                       "percent-encoded",
		"redis://u:hunter2%zz@a:1":                     "percent-encoded",
		"redis://u:hunt/er2@a:1":                       "percent-encoded",
		"redis://u:1/er2@a:1":                          "percent-encoded",
		"redis://u:1?er2@a:1":                          "percent-encoded",
		"redis://u:1?er2=1@a:1":                        "percent-encoded",
		"redis://u:1#er2@a:1":                          "percent-encoded",
		"redis://u:hunter2@a:1/hunter2":                "whole number",
		"redis://u:hunter2@a:1?db=hunter2":             "whole number",
		"redis://u:hunter2@a:1?timeout=1":              `"timeout"`,
	} {
		opt, err := Parse(in)
		if err == nil {
			t.Errorf("%q: accepted as %v", in, opt.InitAddress)
			continue
		}
		text := err.Error()
		if !strings.Contains(text, want) || !strings.HasPrefix(text, "REDIS__CONNECTION: ") {
			t.Errorf("%q: %v, want it to say %q", in, err, want)
		}
		if strings.Contains(text, "hunt") || strings.Contains(text, "er2") {
			t.Errorf("%q: %v repeats a secret", in, err)
		}
	}
}
