package web

// Script is the verifier as the page has it inside.
var Script = script
