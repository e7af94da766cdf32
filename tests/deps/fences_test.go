// Package deps keeps the arrows between the project's packages as they are
// meant to be:
//
//	proto ← internal ← {gateway, router, controlplane} ← allinone ← tests
//
// with ctl and sdk hanging off proto. It has tests only. The test cache does not
// see what changes in other modules: run them with -count=1.
package deps

// Libraries that have one home each.
const (
	rueidis   = "github.com/redis/rueidis/..."
	sarama    = "github.com/IBM/sarama/..."
	saramaOld = "github.com/Shopify/sarama/..."
)

var fences = []fence{
	{
		from:      []string{"./proto/..."},
		forbidden: []string{"./..."}, allowed: []string{"./proto/..."},
		testsToo: true,
		why:      "contracts stand alone: everybody, also outside of this repository, can build on them",
	},
	{
		from:      []string{"./internal/..."},
		forbidden: []string{"./..."}, allowed: []string{"./internal/...", "./proto/..."},
		testsToo: true,
		why:      "the shared kit knows no service, or the services would share more than contracts and plumbing",
	},
	{
		from:      []string{"./gateway/..."},
		forbidden: []string{"./..."}, allowed: []string{"./gateway/...", "./internal/...", "./proto/...", "./sdk/go/..."},
		testsToo: true,
		why:      "services never import each other: they share the contract and are built, deployed and replaced apart",
	},
	{
		from:      []string{"./router/..."},
		forbidden: []string{"./..."}, allowed: []string{"./router/...", "./internal/...", "./proto/...", "./sdk/go/..."},
		testsToo: true,
		why:      "services never import each other: they share the contract and are built, deployed and replaced apart",
	},
	{
		from:      []string{"./controlplane/..."},
		forbidden: []string{"./..."}, allowed: []string{"./controlplane/...", "./internal/...", "./proto/...", "./sdk/go/..."},
		testsToo: true,
		why:      "services never import each other: they share the contract and are built, deployed and replaced apart",
	},
	{
		from:      []string{"./gateway/...", "./router/...", "./controlplane/..."},
		forbidden: []string{"./sdk/go/..."},
		why:       "the SDK is for applications and tenants; only tests of a service use it, from outside",
	},
	{
		from:      []string{"./gateway/..."},
		forbidden: []string{rueidis, sarama, saramaOld},
		testsToo:  true,
		why:       "the edge holds sockets and no state of others: no Redis, no Kafka, so that it can be thrown away",
	},
	{
		from:      []string{"./ctl/..."},
		forbidden: []string{"./..."}, allowed: []string{"./ctl/...", "./proto/..."},
		testsToo: true,
		why:      "micsctl speaks to the control plane only, through the contract",
	},
	{
		from:      []string{"./ctl/..."},
		forbidden: []string{rueidis, sarama, saramaOld},
		testsToo:  true,
		why:       "micsctl speaks to the control plane only, never past it to Redis or Kafka",
	},
	{
		from:      []string{"./sdk/go/..."},
		forbidden: []string{"./..."}, allowed: []string{"./sdk/go/...", "./proto/..."},
		testsToo: true,
		why:      "applications take the SDK into their programs: it brings the contract and nothing of the cluster",
	},
	{
		from:      []string{"./allinone/..."},
		forbidden: []string{"./tests/..."},
		testsToo:  true,
		why:       "what ships does not depend on what tests it",
	},
	{
		from: []string{"./..."}, except: []string{"./gateway/...", "./allinone/...", "./tests/..."},
		forbidden: []string{"./gateway"},
		direct:    true, testsToo: true,
		why: "only the all-in-one and tests compose services, each through its one public constructor",
	},
	{
		from: []string{"./..."}, except: []string{"./router/...", "./allinone/...", "./tests/..."},
		forbidden: []string{"./router"},
		direct:    true, testsToo: true,
		why: "only the all-in-one and tests compose services, each through its one public constructor",
	},
	{
		from: []string{"./..."}, except: []string{"./controlplane/...", "./allinone/...", "./tests/..."},
		forbidden: []string{"./controlplane"},
		direct:    true, testsToo: true,
		why: "only the all-in-one and tests compose services, each through its one public constructor",
	},
	{
		from: []string{"./..."}, except: []string{"./router/internal/redisstore", "./controlplane/internal/store/redis", "./internal/redisconn", "./tests/..."},
		forbidden: []string{rueidis},
		direct:    true,
		owner:     "./router/internal/redisstore",
		why:       "what a service keeps in Redis has one writer: its scripts and its idea of a failure are in one package",
	},
	{
		from: []string{"./..."}, except: []string{"./router/internal/event", "./tests/..."},
		forbidden: []string{sarama, saramaOld},
		direct:    true,
		owner:     "./router/internal/event",
		why:       "publishing never blocks messaging: the queues that see to it are in front of Kafka in one package",
	},
}
