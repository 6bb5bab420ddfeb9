// Package registry knows which instances of which apps exist, where in the tunnel they are reached, and under
// which names.
//
// The store is the only truth. [Registry.Run] follows it and swaps one immutable [Snapshot], which everybody else
// reads without a lock; [Registry.Register] and the other writers change the store and wait until the change has
// come back through the watch, so that a caller who got an answer finds it in the snapshot.
package registry
