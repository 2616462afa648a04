// Package report is what the benchmark finds: figures with a bound, and figures that
// are only compared with another.
package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Report is the content of out/bench.json.
type Report struct {
	Rows []Row `json:"rows"`
}

// Row is one figure beside the bare operation of the same run and its bound.
type Row struct {
	Name string `json:"name"`
	// Bare and Driver are in Unit; Bare is 0 where the bound is absolute.
	Bare   float64 `json:"bare,omitempty"`
	Driver float64 `json:"driver"`
	// Limit is the bound worked out in Unit, Bound is its rule in words. A row that is
	// only a comparison has neither.
	Limit float64 `json:"limit,omitempty"`
	Unit  string  `json:"unit"`
	Bound string  `json:"bound,omitempty"`
	// Beside says what Bare is, where Bound does not.
	Beside string `json:"beside,omitempty"`
	// Ratio is Driver/Bare, 0 where Bare is.
	Ratio float64 `json:"ratio,omitempty"`
	OK    bool    `json:"ok"`
}

// NewRow judges a figure.
func NewRow(name, unit string, bare, driver, limit float64, bound string) Row {
	r := Row{Name: name, Unit: unit, Bare: bare, Driver: driver, Limit: limit, Bound: bound, OK: driver <= limit}
	if bare > 0 {
		r.Ratio = driver / bare
	}
	return r
}

// Comparison puts a figure beside another, and judges nothing.
func Comparison(name, unit string, bare, driver float64, beside string) Row {
	r := NewRow(name, unit, bare, driver, driver, "")
	r.Limit, r.Beside = 0, beside
	return r
}

// Bounds is the number of rows that have one.
func (r Report) Bounds() (n int) {
	for _, row := range r.Rows {
		if row.Bound != "" {
			n++
		}
	}
	return n
}

// Missed returns the names of the rows that miss their bounds.
func (r Report) Missed() []string {
	var missed []string
	for _, row := range r.Rows {
		if !row.OK {
			missed = append(missed, row.Name)
		}
	}
	return missed
}

// Print writes the rows as a table.
func (r Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "operation\tbare\tdriver\tratio\tlimit\tbound\t")
	for _, row := range r.Rows {
		bare, ratio, limit, rule, verdict := "-", "-", fmt.Sprintf("%.2f %s", row.Limit, row.Unit), row.Bound, "ok"
		if row.Bound == "" {
			limit, rule, verdict = "-", "beside "+row.Beside, "compared"
		}
		if row.Bare > 0 {
			bare, ratio = fmt.Sprintf("%.2f %s", row.Bare, row.Unit), fmt.Sprintf("%.2fx", row.Ratio)
		}
		if !row.OK {
			verdict = "MISSED"
		}
		fmt.Fprintln(t, strings.Join([]string{
			row.Name, bare, fmt.Sprintf("%.2f %s", row.Driver, row.Unit), ratio,
			limit, rule, verdict,
		}, "\t"))
	}
	return t.Flush()
}
