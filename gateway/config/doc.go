// Package config reads the configuration of dstack-gateway.
//
// The file is TOML 1.0. Reading is strict: a key that does not exist, a value of the wrong type and a combination that
// can't work are each told with file, line, key and what would be right, and all of them are told at once.
package config
