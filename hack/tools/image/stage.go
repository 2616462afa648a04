package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"strings"
)

// stage is the last stage of a Dockerfile, which adds one file to nothing.
type stage struct {
	labels     map[string]string
	user       string
	entrypoint []string
	// file is where the binary goes.
	file string
}

var (
	blank = regexp.MustCompile(`\s+`)
	label = regexp.MustCompile(`^\s*([^\s="]+)="([^"]*)"`)
)

// parseStage reads the last stage of a Dockerfile. It knows the few
// instructions that this project's own uses and refuses every other, so an
// image built from it never lacks what an engine would have put in.
func parseStage(r io.Reader, args map[string]string) (stage, error) {
	instructions, err := readInstructions(r)
	if err != nil {
		return stage{}, err
	}
	var s stage
	var values map[string]string
	base := ""
	for _, line := range instructions {
		word, rest, _ := strings.Cut(blank.ReplaceAllString(line, " "), " ")
		if word == "FROM" {
			base, s, values = rest, stage{labels: map[string]string{}}, map[string]string{}
			continue
		}
		if base != "scratch" {
			continue
		}
		rest = os.Expand(rest, func(variable string) string { return values[variable] })
		switch word {
		case "ARG":
			variable, value, _ := strings.Cut(rest, "=")
			if given, ok := args[variable]; ok {
				value = given
			}
			values[variable] = value
		case "LABEL":
			labels, err := parseLabels(rest)
			if err != nil {
				return stage{}, err
			}
			maps.Copy(s.labels, labels)
		case "USER":
			s.user = rest
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(rest), &s.entrypoint); err != nil {
				return stage{}, fmt.Errorf("%s: %w", line, err)
			}
		case "COPY":
			words := strings.Fields(rest)
			if len(words) != 3 || !strings.HasPrefix(words[0], "--from=") || s.file != "" {
				return stage{}, fmt.Errorf("%s: only one file, COPY --from=STAGE SOURCE TARGET, is understood here", line)
			}
			s.file = words[2]
		default:
			return stage{}, fmt.Errorf("%s: not understood here", line)
		}
	}
	if base != "scratch" {
		return stage{}, fmt.Errorf("the last stage is not FROM scratch")
	}
	if s.file == "" || len(s.entrypoint) == 0 {
		return stage{}, fmt.Errorf("the last stage has no COPY or no ENTRYPOINT")
	}
	return s, nil
}

// readInstructions returns the instructions of a Dockerfile, one each, without
// comments and with continued lines joined.
func readInstructions(r io.Reader) ([]string, error) {
	var instructions []string
	var current strings.Builder
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		text, more := strings.CutSuffix(line, `\`)
		current.WriteString(text)
		if !more {
			instructions = append(instructions, current.String())
			current.Reset()
		}
	}
	if current.Len() > 0 {
		return nil, fmt.Errorf("%s: continued, but nothing follows", current.String())
	}
	return instructions, scanner.Err()
}

func parseLabels(s string) (map[string]string, error) {
	labels := map[string]string{}
	for s != "" {
		m := label.FindStringSubmatch(s)
		if m == nil {
			return nil, fmt.Errorf("LABEL %s: not of the form key=\"value\"", s)
		}
		labels[m[1]] = m[2]
		s = strings.TrimSpace(s[len(m[0]):])
	}
	return labels, nil
}
