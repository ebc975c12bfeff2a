// A gRPC client in a process of its own that finds its targets by xds:///: does what lines of JSON say, as
// tests/integration/gateway/caller.py does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds" // the resolver of xds:///
)

const (
	timeout  = 60 * time.Second
	messages = 5 // of one call in both directions, each sent when the one before has been answered
)

type command struct {
	Do       string            `json:"do"`
	Target   string            `json:"target"`
	Wait     bool              `json:"wait"`
	Metadata map[string]string `json:"metadata"`
	Calls    int               `json:"calls"`
}

type outcome struct {
	From string `json:"from,omitempty"`
	Code string `json:"code,omitempty"`
	Said string `json:"said,omitempty"`
}

type told struct {
	outcome
	Ended   []outcome      `json:"ended,omitempty"`
	Answers map[string]int `json:"answers,omitempty"`
	Failed  []string       `json:"failed,omitempty"`
}

// rawCodec leaves messages as the bytes that they are.
type rawCodec struct{}

func (rawCodec) Name() string                        { return "raw" }
func (rawCodec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}

type caller struct {
	channels map[string]*grpc.ClientConn
	burst    chan outcome
	stop     chan struct{}
	going    sync.WaitGroup
	lock     sync.Mutex
	answers  map[string]int
	failed   []string
}

func main() {
	it := &caller{channels: map[string]*grpc.ClientConn{}, answers: map[string]int{}, failed: []string{}}
	lines := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked command
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			log.Fatal(err)
		}
		if err := out.Encode(it.do(asked)); err != nil {
			log.Fatal(err)
		}
	}
}

func (it *caller) do(asked command) told {
	channel := it.channel(asked.Target)
	switch asked.Do {
	case "call":
		from, err := say(channel, asked.Metadata, asked.Wait)
		return told{outcome: outcomeOf(from, err)}
	case "burst":
		it.burst = make(chan outcome, asked.Calls)
		for range asked.Calls {
			go func() {
				from, err := say(channel, nil, false)
				it.burst <- outcomeOf(from, err)
			}()
		}
	case "rest":
		ended := []outcome{}
		for range cap(it.burst) {
			ended = append(ended, <-it.burst)
		}
		return told{Ended: ended}
	case "begin":
		it.stop = make(chan struct{})
		it.goOn("say", func() (string, error) { return say(channel, nil, false) })
		it.goOn("talk", func() (string, error) { return talk(channel) })
	case "end":
		close(it.stop)
		it.going.Wait()
		return told{Answers: it.answers, Failed: it.failed}
	}
	return told{}
}

func (it *caller) channel(target string) *grpc.ClientConn {
	if _, known := it.channels[target]; !known {
		channel, err := grpc.NewClient(
			target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
		)
		if err != nil {
			log.Fatal(err)
		}
		it.channels[target] = channel
	}
	return it.channels[target]
}

func (it *caller) goOn(what string, call func() (string, error)) {
	it.going.Go(func() {
		for {
			select {
			case <-it.stop:
				return
			default:
			}
			from, err := call()
			it.lock.Lock()
			if err == nil {
				it.answers[from]++
			} else {
				it.failed = append(it.failed, fmt.Sprint(what, " ", err))
			}
			it.lock.Unlock()
			if err != nil {
				time.Sleep(50 * time.Millisecond)
			}
		}
	})
}

func say(channel *grpc.ClientConn, headers map[string]string, wait bool) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.New(headers))
	asked, answer := []byte("who"), []byte{}
	err := channel.Invoke(ctx, "/echo.Echo/Say", &asked, &answer, grpc.WaitForReady(wait))
	return string(answer), err
}

func talk(channel *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	both := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := channel.NewStream(ctx, both, "/echo.Echo/Talk")
	if err != nil {
		return "", err
	}
	from := ""
	for number := range messages {
		said := fmt.Appendf(nil, "%d", number)
		if err := stream.SendMsg(&said); err != nil && err != io.EOF {
			return "", err
		}
		answer := []byte{}
		if err := stream.RecvMsg(&answer); err != nil {
			return "", err
		}
		who, number, _ := strings.Cut(string(answer), " ")
		if number != string(said) {
			return "", fmt.Errorf("%s for %s", number, said)
		}
		from = who
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	if err := stream.RecvMsg(&[]byte{}); err != io.EOF {
		return "", fmt.Errorf("the stream does not end: %v", err)
	}
	return from, nil
}

func outcomeOf(from string, err error) outcome {
	if err == nil {
		return outcome{From: from}
	}
	found := status.Convert(err)
	return outcome{Code: strings.ToUpper(found.Code().String()), Said: found.Message()}
}
