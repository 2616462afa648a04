package nfs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseRetention reads for how long an archive is kept: a duration as
// time.ParseDuration knows it, which may begin with days, such as "30d" or
// "1d12h". The empty string means for ever, which is 0.
func ParseRetention(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	days, rest, found := strings.Cut(s, "d")
	if !found {
		days, rest = "0", s
	}
	n, err := strconv.ParseUint(days, 10, 32)
	var d time.Duration
	if err == nil && rest != "" {
		d, err = time.ParseDuration(rest)
	}
	switch {
	case err != nil || strings.HasPrefix(rest, "+"):
		return 0, fmt.Errorf("%w: archiveRetention %q is no duration: write days, hours and minutes such as 30d, 720h or 1d12h", ErrInvalid, s)
	case d < 0 || n == 0 && d == 0:
		return 0, fmt.Errorf("%w: archiveRetention %q is not above zero: leave it out to keep archives for ever, or use onDelete delete to keep none", ErrInvalid, s)
	case time.Duration(n) > (math.MaxInt64-d)/day:
		return 0, fmt.Errorf("%w: archiveRetention %q is longer than 292 years: leave it out to keep archives for ever", ErrInvalid, s)
	}
	return time.Duration(n)*day + d, nil
}
