package gateway

// Doors for tests.
var NewLimiter = newLimiter

// Take is limiter.take.
var Take = (*limiter).take

// MaxClients is how many clients a limiter remembers.
const MaxClients = maxClients

// ClientOf is what a rate limit counts by.
var ClientOf = clientOf

// ChallengeOf reads the challenge of a request.
var ChallengeOf = challengeOf
