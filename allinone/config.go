package allinone

import (
	"io"

	"github.com/mics-im/mics/internal/config"
)

// Config is what mics-dev runs. Get one from LoadConfig.
type Config struct {
	// Gateways is how many gateways there are, BasePort the first one's client
	// port (the others follow). 0 gives each a free port.
	Gateways, BasePort int
	// ControlPort is the control plane's operator port; 0: a free one.
	ControlPort int
	// PlaygroundPort is where the demo tenant's page is served, always on
	// loopback; 0: not at all.
	PlaygroundPort int
	// Host is the address on which clients and operators are served. What the
	// services say to each other stays on loopback.
	Host string
	// LogWriter is where the services log, several at once; nil: standard error.
	LogWriter io.Writer

	settings *settings
	usage    string
}

// maxGateways keeps a slip of the finger from eating the machine.
const maxGateways = 64

// LoadConfig reads mics-dev's own flags (or environment variables of the same
// names) and keeps the rest for the services, which check it in New. On
// config.ErrHelp the returned Config still has its Usage. Errors about values
// wrap config.ErrInvalid.
func LoadConfig(args []string, lookup func(string) (string, bool)) (Config, error) {
	c := Config{Gateways: 2, BasePort: 8080, ControlPort: 8070, PlaygroundPort: 8069}
	set := config.New("mics-dev")
	set.Int(&c.Gateways, "GATEWAYS", config.Bound{Min: 1, Max: maxGateways}, "number of gateways")
	set.Int(&c.BasePort, "BASE_PORT", config.Bound{Min: 0, Max: 65535 - maxGateways},
		"client port of the first gateway; 0: any free port for each")
	set.Int(&c.ControlPort, "CONTROL_PORT", config.Bound{Min: 0, Max: 65535}, "operator port of the control plane; 0: any free one")
	set.Int(&c.PlaygroundPort, "PLAYGROUND_PORT", config.Bound{Min: 0, Max: 65535}, "port of the demo tenant's page; 0: no page")
	set.String(&c.Host, "HOST", "127.0.0.1", "address for clients and operators (as a flag only)")
	c.usage = set.Usage()

	own, services, err := splitArgs(args, "gateways", "base-port", "control-port", "playground-port", "host")
	if err != nil {
		return c, err
	}
	// HOST is a name that shells and container images use for other things.
	ownLookup := func(name string) (string, bool) {
		if name == "HOST" {
			return "", false
		}
		return lookup(name)
	}
	if err := set.Parse(own, ownLookup); err != nil {
		return c, err
	}
	c.settings = &settings{
		flags: services, lookup: lookup, taken: map[string]bool{},
		defaults: map[string]string{
			"LOG_LEVEL":         "warn", // what is next to do should stay readable
			"REDIS__CONNECTION": "memory",
		},
	}
	return c, nil
}

// Usage lists mics-dev's own flags.
func (c Config) Usage() string { return c.usage }
