// Package prpc speaks dstack's RPC: methods below one path, whose messages travel as JSON or as protobuf (dstack 0.6
// ra-rpc/src/rocket_helper.rs, and the crate prpc 0.6).
//
//	POST /prpc/<method>        protobuf in and out
//	POST /prpc/<method>?json   JSON in and out; so does a Content-Type of application/json
//	GET  /prpc/<method>?a=b    the message in the query, JSON out
//
// A message is a pointer to a struct. Each of its fields has a json tag with the name, and a prpc tag with the protobuf field
// number; it is a bool, string, uint32, uint64, int, []byte or a type of these, a struct or a pointer to one, or a list of strings or
// structs. A pointer is a message that may be absent, null in JSON; nothing else ever is null, for serde takes a missing list but not a null one.
package prpc
