package route

import "errors"

// ErrPartial comes with an answer of Nodes or Routers that is right as far as it
// goes: what is not in it may be there all the same, because the store is only
// just back.
var ErrPartial = errors.New("the route store does not know everything yet")
