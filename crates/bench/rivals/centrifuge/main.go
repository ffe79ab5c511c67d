// Command centrifuge is Centrifugo's core as its library sets it up, with nothing of its own but
// who is in which channel: a client that connects with a name is subscribed by the server to the
// channel of that name, and one without a name is not subscribed and may publish to any.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/centrifugal/centrifuge"
)

func main() {
	ready := flag.String("ready", "", "file to write the address to")
	flag.Parse()
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnecting(func(_ context.Context, event centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		reply := centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{UserID: "user"}}
		if event.Name != "" {
			reply.Subscriptions = map[string]centrifuge.SubscribeOptions{event.Name: {}}
		}
		return reply, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnPublish(func(_ centrifuge.PublishEvent, done centrifuge.PublishCallback) {
			done(centrifuge.PublishReply{}, nil)
		})
	})
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	http.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	partial := *ready + ".partial"
	if err := os.WriteFile(partial, []byte(listener.Addr().String()), 0o600); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(partial, *ready); err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, nil))
}
