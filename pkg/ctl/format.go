package ctl

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// writeTable writes rows below a header, aligned.
func writeTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// text is a name as a table shows it: quoted where a terminal could take it for
// something else, "-" when there is none.
func text(s string) string {
	if s == "" {
		return "-"
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// size is a number of bytes for people: 3 digits and a binary unit.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f := float64(n)
	unit := ""
	for _, u := range []string{"Ki", "Mi", "Gi", "Ti", "Pi", "Ei"} {
		if f < 1023.5 {
			break
		}
		f, unit = f/1024, u
	}
	if f < 9.95 {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + unit
	}
	return fmt.Sprintf("%.0f%s", f, unit)
}

// count is a number with its thousands apart.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// age is how long ago a time was, in at most two units; "-" for no time.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, now.Sub(t))
	day := 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return two(d, time.Minute, "m", time.Second, "s")
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 10*time.Hour:
		return two(d, time.Hour, "h", time.Minute, "m")
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 10*day:
		return two(d, day, "d", time.Hour, "h")
	case d < 2*365*day:
		return fmt.Sprintf("%dd", d/day)
	}
	return two(d, 365*day, "y", day, "d")
}

// until is how long it is to a time; "never" for no time.
func until(now, t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case !t.After(now):
		return "now"
	}
	return "in " + age(t, now)
}

func two(d, a time.Duration, as string, b time.Duration, bs string) string {
	out := fmt.Sprintf("%d%s", d/a, as)
	if rest := d % a / b; rest > 0 {
		out += fmt.Sprintf("%d%s", rest, bs)
	}
	return out
}

// ParseSize reads a size as Kubernetes writes it: 10Gi, 500M, 1073741824.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGTPEki")
	units := map[string]int64{
		"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	unit := units[s[len(digits):]]
	if err != nil || n <= 0 || unit == 0 || n > (1<<63-1)/unit {
		return 0, fmt.Errorf("%q is not a size such as 10Gi", s)
	}
	return n * unit, nil
}
