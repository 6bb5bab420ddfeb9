package config_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dstack.host/gateway/config"
)

func TestTransferKey(t *testing.T) {
	for _, row := range []struct{ name, key, text, fault string }{
		{"good", "transfer.example", base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n", ""},
		{"short", "transfer.example", base64.StdEncoding.EncodeToString(make([]byte, 8)), "shorter"},
		{"no base64", "transfer.example", "s3cret!", "no base64"},
		{"no name of a key", "transfer example", base64.StdEncoding.EncodeToString(make([]byte, 32)), "domain name"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := config.Transfer{KeyName: row.key, KeyFile: file}.Key()
			if got := err != nil; got != (row.fault != "") || got && !strings.Contains(err.Error(), row.fault) {
				t.Errorf("%v, want %q", err, row.fault)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
}
