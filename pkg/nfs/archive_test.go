package nfs

import (
	"errors"
	"testing"
	"time"
)

func TestParseRetention(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "30d": 720 * time.Hour, "720h": 720 * time.Hour, "1d12h": 36 * time.Hour, "0d5s": 5 * time.Second,
		"90m": 90 * time.Minute, "106751d": 106751 * 24 * time.Hour, "720h0m0s": 720 * time.Hour,
	} {
		got, err := ParseRetention(in)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
		if again, err := ParseRetention(got.String()); got > 0 && (err != nil || again != got) {
			t.Errorf("%q: %q is read as %v, %v", in, got, again, err)
		}
	}
	for _, in := range []string{
		"0", "0d", "0s", "-1h", "-1d", "30", "d", "x", "1.5d", "30D", "1h30d", "1d-1h", "1d+1h", "1d1d", " 1d",
		"106752d", "4294967296d", "106751d24h", "99999999999h",
	} {
		if got, err := ParseRetention(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v, want an error", in, got, err)
		}
	}
}
