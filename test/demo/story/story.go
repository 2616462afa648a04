// Package story tells a person at a terminal what a program does, chapter by
// chapter, each command before its output.
package story

import (
	"fmt"
	"io"
	"strings"
)

// Story is what a demo tells.
type Story struct {
	Out      io.Writer
	chapters int
	shown    bool // a command's output came last
}

// Chapter begins a numbered chapter.
func (s *Story) Chapter(title string) {
	s.chapters++
	s.shown = false
	s.printf("\n%d. %s\n", s.chapters, title)
}

// Say tells one line.
func (s *Story) Say(format string, args ...any) {
	if s.shown {
		s.printf("\n")
	}
	s.shown = false
	s.printf("   "+format+"\n", args...)
}

// Run shows a command behind its prompt, runs it and shows what it printed,
// which it also returns.
func (s *Story) Run(prompt string, args []string, run func() (string, error)) (string, error) {
	s.printf("\n   %s %s\n", prompt, Command(args))
	out, err := run()
	for line := range strings.Lines(out) {
		s.printf("%s\n", strings.TrimRight("   "+line, " \n"))
	}
	s.shown = true
	return out, err
}

// printf drops errors: a story that nobody reads has to come to its end, too.
func (s *Story) printf(format string, args ...any) { _, _ = fmt.Fprintf(s.Out, format, args...) }

// width is how long a shown command may be before its next option is on the next line.
const width = 100

// Command writes a command as one types it into a shell.
func Command(args []string) string {
	var b strings.Builder
	line := 0
	for i, arg := range args {
		word := quote(arg)
		length := len(word)
		option := i > 0 && strings.HasPrefix(arg, "-")
		if option && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			length += 1 + len(quote(args[i+1])) // its value
		}
		switch {
		case i == 0:
		case option && line+length > width:
			b.WriteString(" \\\n       ")
			line = 0
		default:
			b.WriteByte(' ')
		}
		b.WriteString(word)
		line += len(word) + 1
	}
	return b.String()
}

// quote quotes a word where a shell would not take it as it is.
func quote(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
