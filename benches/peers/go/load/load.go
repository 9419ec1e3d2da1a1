// Package load keeps a number of operations in flight for a time and reports what came of it, in
// the same form as every driver here: one JSON object on one line.
//
// An operation counts when it both ends within the measured window and succeeds. CPU time is that
// of this process and of those named by --cpu-of, read at the window's two ends.
package load

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Options is the shape of the load, as the command line gives it.
type Options struct {
	Inflight int
	Payload  int
	Seconds  float64
	Warm     float64
	CPUOf    []int
}

// Flags adds the options to the command line and parses it.
func Flags() *Options {
	options := &Options{}
	flag.IntVar(&options.Inflight, "inflight", 1, "operations in flight")
	flag.IntVar(&options.Payload, "payload", 16, "bytes of an operation's value")
	flag.Float64Var(&options.Seconds, "seconds", 5, "how long to measure")
	flag.Float64Var(&options.Warm, "warm", 2, "how long to run before that")
	cpuOf := flag.String("cpu-of", "", "processes, by id, whose CPU time counts too; separated by commas")
	flag.Parse()
	if options.Inflight < 1 || options.Payload < 1 || options.Seconds <= 0 {
		Fail("--inflight, --payload and --seconds must be more than 0")
	}
	for _, pid := range strings.FieldsFunc(*cpuOf, func(r rune) bool { return r == ',' }) {
		id, err := strconv.Atoi(pid)
		if err != nil {
			Fail("--cpu-of %q: %v", pid, err)
		}
		options.CPUOf = append(options.CPUOf, id)
	}
	return options
}

// Fail ends the program with a reason.
func Fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

const (
	warming = iota
	measuring
	stopping
)

// Run calls op from as many goroutines as there are operations in flight, and prints the report
// with what facts adds to it.
func Run(options *Options, facts map[string]any, op func(worker int) error) {
	var phase atomic.Int32
	var failed atomic.Int64
	var last atomic.Value
	histograms := make([]*hdrhistogram.Histogram, options.Inflight)
	var workers sync.WaitGroup
	for worker := range histograms {
		// Two digits: a thousand histograms with three would be memory that a garbage collector walks.
		histogram := hdrhistogram.New(1, 60_000_000, 2)
		histograms[worker] = histogram
		workers.Add(1)
		go func() {
			defer workers.Done()
			for phase.Load() != stopping {
				start := time.Now()
				err := op(worker)
				took := time.Since(start)
				switch {
				case err != nil:
					failed.Add(1)
					last.Store(err.Error())
					time.Sleep(time.Millisecond)
				case phase.Load() == measuring:
					_ = histogram.RecordValue(took.Microseconds())
				}
			}
		}()
	}
	time.Sleep(seconds(options.Warm))
	failed.Store(0)
	cpu := cpuSeconds(options.CPUOf)
	start := time.Now()
	phase.Store(measuring)
	time.Sleep(seconds(options.Seconds))
	phase.Store(stopping)
	took := time.Since(start).Seconds()
	cpu = cpuSeconds(options.CPUOf) - cpu
	workers.Wait()

	all := hdrhistogram.New(1, 60_000_000, 3)
	for _, histogram := range histograms {
		all.Merge(histogram)
	}
	done := all.TotalCount()
	if done == 0 {
		Fail("no operation succeeded; %d failed, the last one: %v", failed.Load(), last.Load())
	}
	report := map[string]any{
		"ops_per_s":        float64(done) / took,
		"p50_us":           all.ValueAtQuantile(50),
		"p99_us":           all.ValueAtQuantile(99),
		"p999_us":          all.ValueAtQuantile(99.9),
		"cpu_s_per_1k_ops": cpu / float64(done) * 1e3,
		"failed":           failed.Load(),
	}
	if reason, ok := last.Load().(string); ok {
		report["failure"] = reason
	}
	for name, fact := range facts {
		report[name] = fact
	}
	line, err := json.Marshal(report)
	if err != nil {
		Fail("the report: %v", err)
	}
	fmt.Println(string(line))
}

func seconds(count float64) time.Duration {
	return time.Duration(count * float64(time.Second))
}

// cpuSeconds is the CPU time, user and system, of this process and of the others.
func cpuSeconds(others []int) float64 {
	total := 0.0
	for _, pid := range append([]int{os.Getpid()}, others...) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			Fail("the CPU time of process %d: %v", pid, err)
		}
		// The name, in brackets, may hold spaces; user and system time are the 12th and 13th field after it.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseFloat(field, 64)
			if err != nil {
				Fail("the CPU time of process %d: %v", pid, err)
			}
			total += ticks / 100
		}
	}
	return total
}
