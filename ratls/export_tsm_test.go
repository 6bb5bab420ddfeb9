package ratls

// OpenTDXWith is OpenTDX on a configfs of the test's.
var OpenTDXWith = openTDX

// ParseRuntimeLog reads dstack's runtime log.
var ParseRuntimeLog = parseRuntimeLog
