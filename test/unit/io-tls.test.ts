import { createHash, X509Certificate } from 'node:crypto';
import * as tls from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Exchange, TlsFacts } from '../../core/contract/index.js';
import { connect } from '../../core/io/connect.js';
import { type Listener, listen } from '../../core/io/listen.js';
import { peekFirstByte } from '../../core/io/peek.js';
import { runExchange } from '../../core/io/run-exchange.js';
import { clientTls, endPointHash, serverTls, type TlsMode } from '../../core/io/tls.js';
import type { Wire } from '../../core/io/wire.js';

// Made for these tests only: a CA, a server `db.test` (also 127.0.0.1), signed with SHA-384, a client, and a stranger.
const CA = `-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUS4vsrL+Uj4E+nSRJBTwHJXGCWqkwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdC1jYTAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAx
MzIzNFowEjEQMA4GA1UEAwwHdGVzdC1jYTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABJ5xDpMBmhnvFLB96Qv73Zz7C5dCdC8N+5xbP7d9U6gCnVgO3i5TyxIUyTtC
g3fFYzxW0ffHbUjeLRzfeRrJukWjUzBRMB0GA1UdDgQWBBRGn5WlYmKpQC40HzqZ
s12uwlzhfjAfBgNVHSMEGDAWgBRGn5WlYmKpQC40HzqZs12uwlzhfjAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIBD6Q+kXGOL8C5w+6YulIL/aL3Rc
a3WBy0xjkMNUxgijAiEAjMK92oAVWvQr9i+XMvsSnE6T9CYcDOnbPfcrhfBYFfk=
-----END CERTIFICATE-----
`;
const CERT = `-----BEGIN CERTIFICATE-----
MIIBhDCCASqgAwIBAgIUEZ5wjZWJP4ynT9YHC9zSw6QIlcEwCgYIKoZIzj0EAwMw
EjEQMA4GA1UEAwwHdGVzdC1jYTAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAx
MzIzNFowEjEQMA4GA1UEAwwHZGIudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABP4rTsq2VnBGriNbYnPyYpoPKbyB5Ed4SnK6IHEI6yVztYEqa4v7VgUZekAn
4Y/l1Ti0eZuIppnz76jRz9oRoE6jXDBaMBgGA1UdEQQRMA+CB2RiLnRlc3SHBH8A
AAEwHQYDVR0OBBYEFDVDlO4Il7bAFh2SNRYisLF6fbpJMB8GA1UdIwQYMBaAFEaf
laViYqlALjQfOpmzXa7CXOF+MAoGCCqGSM49BAMDA0gAMEUCIQCH94F21EIa7CZ7
fHjXm+5o06cblUr0ql6vBK5RtLCQCQIgQEJQ0NmItHJ3Je5Hxd4IIEAXeisdr211
Nl0NFVN1ZQU=
-----END CERTIFICATE-----
`;
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqfI19KdsfiiZMy3W
b9zcXdG6naKEORb7Ohp8gD3lRJ+hRANCAAT+K07KtlZwRq4jW2Jz8mKaDym8geRH
eEpyuiBxCOslc7WBKmuL+1YFGXpAJ+GP5dU4tHmbiKaZ8++o0c/aEaBO
-----END PRIVATE KEY-----
`;
const CLIENT_CERT = `-----BEGIN CERTIFICATE-----
MIIBHzCBxgIUEZ5wjZWJP4ynT9YHC9zSw6QIlcIwCgYIKoZIzj0EAwIwEjEQMA4G
A1UEAwwHdGVzdC1jYTAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFow
ETEPMA0GA1UEAwwGY2xpZW50MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAENbJ7
5SF5i/i7GeXEHvRnGSy5mziInHlE8PJajUgvRWoseZFSzwERnSDq9tmCeFZmYrb9
gLcecAgqt5x8j1KL2DAKBggqhkjOPQQDAgNIADBFAiEAhPW0oZN5Wd14RwsbQY6f
edb+tbwmFeXffRGvHkTLbUoCIBrSC7wEZDLg2cXEV5+GVI8pAQjhBAT6Nc1qj9QP
IblC
-----END CERTIFICATE-----
`;
const CLIENT_KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgvbQwXTcSfV7tbjW9
bGRn+geKcVzcnQXHhrS/MrvJs4qhRANCAAQ1snvlIXmL+LsZ5cQe9GcZLLmbOIic
eUTw8lqNSC9Faix5kVLPARGdIOr22YJ4VmZitv2Atx5wCCq3nHyPUovY
-----END PRIVATE KEY-----
`;
const STRANGER_CERT = `-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUGWtRdYkbRo2D2lRFIz/gnU3HVRUwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGY2xpZW50MCAXDTI2MTEyMzAxMzYwM1oYDzIxMjYxMDMwMDEz
NjAzWjARMQ8wDQYDVQQDDAZjbGllbnQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASs2S+dKl1ciFudMjau9qSUgUdpfCmqlJeqV1olDCir9RBRDwJMjjfwUq4i22fA
cEoB4A0asfDTxPzDxaUcxrzto1MwUTAdBgNVHQ4EFgQUP1tpLne6UPB43w4K8ITf
OX3y1kQwHwYDVR0jBBgwFoAUP1tpLne6UPB43w4K8ITfOX3y1kQwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA69JsWAYBR5G1Hibyeu3dawtEPR/B
9W5tonlDxAK2yb4CIQCBY6mB0EyRfxCG7sim56wd9PJyulUigRW7ujkfr6Q37g==
-----END CERTIFICATE-----
`;
const STRANGER_KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgKSSRSN9p6Uk7XnkC
KVOlLJjUToOTLikc/6FaPWXjUpShRANCAASs2S+dKl1ciFudMjau9qSUgUdpfCmq
lJeqV1olDCir9RBRDwJMjjfwUq4i22fAcEoB4A0asfDTxPzDxaUcxrzt
-----END PRIVATE KEY-----
`;

/** Self-signed certificates by signature algorithm, and the hash that RFC 5929 asks for. */
const SIGNED: [string, string | null, string][] = [
  [
    'MD5',
    'sha256',
    'MIIB9jCCAV+gAwIBAgIUUja6UCrFy0FOYTirzcuF20QL7b0wDQYJKoZIhvcNAQEEBQAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEAnCqsYmlbrC5ssDA8PqIrjH5yQSghILsr1Lpy233+fID6DgJmqLEplYp54NJyYWqBx1ZzI72rm95KvNQWCZYT4fLOmgxbRjwJEN/l0wrXvUDVdl+Zq8A0nWd1bjsPKJGfTOkw569cy7Ajt37crp4BtQFU36AGfVxnuhRXoHr9l2kCAwEAAaNTMFEwHQYDVR0OBBYEFHDIBE7suOc2cnOlx4TNvs151NBzMB8GA1UdIwQYMBaAFHDIBE7suOc2cnOlx4TNvs151NBzMA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQEEBQADgYEAl8LEvdvABUoegpaKxXvF+wO5dS97a05FIiXb6q1H/9bf1zDcOqmme9ufbqV2LuEvplR7KWL4EfyA2e2NOU6qydmbfgQiHnd29Svaz1mddoM3ytukanZeDv1xFpwgbr2lX1uzN54nHkmPsQlaQQEmANsqpjam6x1JVjQc1wnusLs=',
  ],
  [
    'SHA-1',
    'sha256',
    'MIIB9jCCAV+gAwIBAgIUDvVlW1DkF/JymVjtk+YCv04b+SswDQYJKoZIhvcNAQEFBQAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEA5r0bLaMWf3KgmAgNXpFqL4NQI3wWmoVjyWsr6xuJZgFde1OKgeXDM9lyWfM5GL0vdmBo8F/iUGa/Fl9kPY11p3k1QwRXQHZ6Rn1agCt7S50MvzhldH/qN/mD2+RotehEL9tk+uRC78AgGHXyYdscybJLmuNuUVmSCvXNC2p259ECAwEAAaNTMFEwHQYDVR0OBBYEFGuhpWbzbnHMh8W5DCuI8+BML+auMB8GA1UdIwQYMBaAFGuhpWbzbnHMh8W5DCuI8+BML+auMA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQEFBQADgYEAe2wf4mRKAAdagpe5kDeyrX30TTe88UuNiRpx75YGCM6d5ZbEt9yqJb+THaIifpMc+aMzzowpVjibpb4zTyxUwspfXiEaxXalgaacAHNkgpbkZdOpGU6fW/3fU/Ntczk1H92tjyo9TCAyf6NR+WKn1fj1wF1M/HSkD+ycku8Uluo=',
  ],
  [
    'SHA-224',
    'sha224',
    'MIIB9jCCAV+gAwIBAgIUQ0C76EWdoBIIEcfc22/v2hQOajgwDQYJKoZIhvcNAQEOBQAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEA3RI0/BirP0Kr0ztpFW61aDxRDHS6H8kq1j/qOOdYNX3i5b98UraYOLP9XQFRhQ1amFBsTaZSaU/CKJRoHE7BtqO+uQ/C1TkUaxVk/PxUiTE68dEMXeyZZU3rsLzk5rrUoM7I6MCCrRbvX95XlNQnkk0rbUxdr1Kjb/Ydn4w2yZUCAwEAAaNTMFEwHQYDVR0OBBYEFHeD7ZEfLHjtvMN21BHzGWD6MSQxMB8GA1UdIwQYMBaAFHeD7ZEfLHjtvMN21BHzGWD6MSQxMA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQEOBQADgYEAcxIoGf4d7LUg/ByIZuu8H+Fq+GVQgs/3hrR0bRJ9GBqaWNlDCXdkIms7IxziOmIcF5pn/SKQ8ZJa4+n+x9aOeiJwWOoJxEQDpO0LcQxhxt5xO6HAk2jOSM3CRSkqsz/xKWO+vLDGStEsO8mZSkVzljp4wEkj5s53KStygZVYA+o=',
  ],
  [
    'SHA-256',
    'sha256',
    'MIIB9jCCAV+gAwIBAgIUK6IgGeKMkK73g7I0OhwgmxxrqHYwDQYJKoZIhvcNAQELBQAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEA1v5MrULXfRGv6n5pMZgId2HPq2ZzWVLolk2fFaucWBHF6rntRWXvB1vmiI/vWse+bmlSJarAvwO+mI/FSqLh+wAMGodYpgd3V99oVuxh5sKYXjDRZTsKHmTzBhqwCoqw5d+S6H1GNKAAPGIiiyUFs4YHsgToJlnzHLdajVf++C0CAwEAAaNTMFEwHQYDVR0OBBYEFDu8e1gYPV0nl8neSC/d9FTSWo5+MB8GA1UdIwQYMBaAFDu8e1gYPV0nl8neSC/d9FTSWo5+MA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQELBQADgYEAdzm9kHgavD2+9Zxu3Oye2MoKfNAO9CkXGLVRcLcqecFAohfeklRV0j0zhl4QJoLNbFFNxYXlGAPgRwsgJcpYHNnIY1LoOQO97UcE3k5mfKu8Szn3lPP/iNu4ppfVZwtnhKqju0+HlMOqRkbDzEx3WtyJZ9ao3o8eo3dfFl9vhFc=',
  ],
  [
    'SHA-384',
    'sha384',
    'MIIB9jCCAV+gAwIBAgIUC3thJl7vvNG8HuqwpOCBg2dwpr4wDQYJKoZIhvcNAQEMBQAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEAl63kHi0ddbAOe2AY/a4KBGtMWSZKf06kwCec+lRVL/zLY3Lte5rllh6XPK8bNglB2KrFGZqBXJqiAr7hs1MkuUx4ieiXNAci0ydhsUPWP184kEsnvVC/wP7Ednja6s4yJDv/cC+BxJKZHGMH0Uo6MKXmNmWRSAWAIaXo5+breMcCAwEAAaNTMFEwHQYDVR0OBBYEFBeY++8VtTs91kYTSPWbJwhoTQjfMB8GA1UdIwQYMBaAFBeY++8VtTs91kYTSPWbJwhoTQjfMA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQEMBQADgYEAM64wLOxsRT4WE/d7ax1WxDiBVkM8smT+1c3AKEGsQ7Nr0X2yuVu1Oh6TAsVMrDVdX7tpMxN0xxjgbRPVbgYT9jM+lz6Tta97lhwm7f2EAnHcHVuef6wkUQCBBrVi21aZVJseO9hnINiPBvDF/EOH+4WAcZBy6zNDptsJqKbDTuI=',
  ],
  [
    'ECDSA with SHA-512',
    'sha512',
    'MIIBcDCCARWgAwIBAgIUemi30/gh4J9I+2wFStFu2Etc1WEwCgYIKoZIzj0EAwQwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABP2vp1L4wY1k5LrL/9RgESW9cFx2mZDILutW4dE8Wz5NHK1JfrG2PfUlPkVv+DUqKlWcB4jK1TmkJhC8n1UVa+yjUzBRMB0GA1UdDgQWBBS9u8wkuyo/IQGZG1kFYff3TvhevzAfBgNVHSMEGDAWgBS9u8wkuyo/IQGZG1kFYff3TvhevzAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMEA0kAMEYCIQDQd9C2c1jqGlssOx/8XGMS4LA9KtpS9oHAZAXFdCHQ/AIhAOg7S5tEeDRRoBlVKR+/ryVR7CV6j7MOL2ZCGYjohxON',
  ],
  [
    'RSASSA-PSS with SHA-384',
    'sha384',
    'MIICVDCCAY6gAwIBAgIUNgbj9ZbN8NtloGAyusw1rJmr5FcwPAYJKoZIhvcNAQEKMC+gDzANBglghkgBZQMEAgIFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgIFADAMMQowCAYDVQQDDAF4MCAXDTI2MTEyMzAxMzIzNFoYDzIxMjYxMDMwMDEzMjM0WjAMMQowCAYDVQQDDAF4MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCw+ujiYNVI/S9SuRXA6wr0V5Y0RD2k5GqcaCo3OLP7bp1TuRQ4m25FAlLdqWVOGp4Iwstp7GASzzMeczV+v5XWa1gmZ5NKE6et3SoUhXOzZjj4h6PG8PzTXxu358CpLi9fh1zrMthRKn4gM5Xns/R7M5y1Tg/86PhShL1YETY2awIDAQABo1MwUTAdBgNVHQ4EFgQU55dlBA7lRHLMLnf18k7wKcUYWn4wHwYDVR0jBBgwFoAU55dlBA7lRHLMLnf18k7wKcUYWn4wDwYDVR0TAQH/BAUwAwEB/zA8BgkqhkiG9w0BAQowL6APMA0GCWCGSAFlAwQCAgUAoRwwGgYJKoZIhvcNAQEIMA0GCWCGSAFlAwQCAgUAA4GBAJ0Ry8DmkWCl4IA/J4VjrD93TpcKurF3LvuhFrM9CIo8xRZ0T81NXRO2w5ODgrL7qJvw0KvSyJ6Mu/Qznds+HY9yFQbTAXyDJDyQfzxi3HMiUZ2jtTEpILEA/4aZjuSeYJzMDF4flsZm7/pkecwleF0Lt37i2itzp6LaNL0amxSM',
  ],
  [
    'RSASSA-PSS with its default, SHA-1',
    'sha256',
    'MIIB9jCCAV+gAwIBAgIUcg8M92aJ66ldC78HmfkpYfh42s4wDQYJKoZIhvcNAQEKMAAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEAtjnC6tC5XzfkLRlaoWeD+Sa3/E4DdwKlfm2AigrH/qYj+y7rIK7XJA9OZ6Qr0KWMxOaIoLrdD3+bKzeYAGstlm1HTJnfqm64a/XGLV0tAP+N2XAvyArCnj/Poffz4gi2nm2WOjO458LHfIwM2T3PLQZPLrbaP7HGkzhcA1JGbkECAwEAAaNTMFEwHQYDVR0OBBYEFIYdOg5CFVatKTV6ojoDHl4IazPBMB8GA1UdIwQYMBaAFIYdOg5CFVatKTV6ojoDHl4IazPBMA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQEKMAADgYEAbJd7HFRrUaO+OKygYmPoVrsBn4y2ESwjQCqFZOeays/VkPDoMF8MHZosO8Ob+z7gjtxYfxkg9Cm0Yaz+QCSNp46AIW0QwO3L7quHbdSHLm/J1KCpa6LPBJEG9vG3+5nqkrOd37joFRqFJFZ4hV/E32RcXEs+vgjYgw/WhTwyrnM=',
  ],
  [
    'Ed25519',
    null,
    'MIIBLjCB4aADAgECAhR9t32b8DwkSCz87ZY8TYOsac22DDAFBgMrZXAwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjMwMTMyMzRaGA8yMTI2MTAzMDAxMzIzNFowDDEKMAgGA1UEAwwBeDAqMAUGAytlcAMhAJNaUC5C0eDMlh1kr8/rgLZrAtJsmv3Jm7VNoAyiKozfo1MwUTAdBgNVHQ4EFgQUh0jDC5UQdaUC6jv0+OPMvqTdl/cwHwYDVR0jBBgwFoAUh0jDC5UQdaUC6jv0+OPMvqTdl/cwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQDLkNvFtm0+Dfa5PhwpMS2SFbWCNFaHBQBfwaEXwYsgBuzODZxGn81ZhLNDURBl2PLMVCEUOy2J096tcf3bX8sK',
  ],
];

describe('the tls-server-end-point hash', () => {
  it.each(SIGNED)('of a certificate signed with %s is %s', (_name, hash, base64) => {
    const der = Buffer.from(base64, 'base64');
    const expected = hash === null ? null : createHash(hash).update(der).digest('hex');
    const got = endPointHash(der);
    expect(got === null ? null : Buffer.from(got).toString('hex')).toBe(expected);
  });

  it('is refused for what is no certificate', () => {
    expect(() => endPointHash(Buffer.from('3003020101', 'hex'))).toThrow(RangeError);
    expect(() => endPointHash(new Uint8Array(0))).toThrow(RangeError);
  });
});

describe('TLS configuration', () => {
  it('names what is wrong', () => {
    expect(() => serverTls({ cert: CERT, key: CLIENT_KEY })).toThrow(/key/);
    expect(() => serverTls({ cert: 'nonsense', key: KEY })).toThrow(
      expect.objectContaining({ code: 'OUTLIVE_TLS_CONFIG', culprit: 'config' }),
    );
    expect(() => clientTls({ mode: 'require', cert: 'nonsense', key: KEY })).toThrow(
      expect.objectContaining({ code: 'OUTLIVE_TLS_CONFIG' }),
    );
  });
});

const HASH = createHash('sha384').update(new X509Certificate(CERT).raw).digest('hex');
const hex = (facts: TlsFacts): string | null => facts.endPoint && Buffer.from(facts.endPoint).toString('hex');

function* nothing(): Exchange<null> {
  yield { want: 'bytes', count: 1 };
  return null;
}

describe.each(['raw', 'stream'] as const)('TLS on a wire (%s)', (kind) => {
  const saved = process.env.OUTLIVE_IO;
  const server = serverTls({ cert: CERT, key: KEY });
  let listener: Listener;
  let arrived: (wire: Wire) => void;
  let ends: Wire[] = [];

  beforeEach(async () => {
    process.env.OUTLIVE_IO = kind;
    listener = await listen({ host: '127.0.0.1', port: 0, onWire: (wire) => arrived(wire) });
  });
  afterEach(async () => {
    if (saved === undefined) delete process.env.OUTLIVE_IO;
    else process.env.OUTLIVE_IO = saved;
    for (const wire of ends) wire.destroy();
    ends = [];
    await listener.close();
  });

  async function pair(): Promise<[Wire, Wire]> {
    const came = new Promise<Wire>((resolve) => {
      arrived = resolve;
    });
    const near = await connect({ host: '127.0.0.1', port: listener.port, timeoutMs: 2000 });
    const far = await came;
    ends.push(near, far);
    return [near, far];
  }

  function client(mode: TlsMode, host = 'db.test', ca: string | undefined = CA) {
    return { side: 'client', tls: clientTls({ mode, ca }), host } as const;
  }

  it('encrypts, agrees on ALPN, and binds the channel to the certificate on both sides', async () => {
    const [near, far] = await pair();
    const facts = await Promise.all([
      near.startTls({ ...client('verify-full'), alpn: 'postgresql' }),
      far.startTls({ side: 'server', tls: server, alpn: 'postgresql' }),
    ]);
    expect(facts.map(hex)).toEqual([HASH, HASH]);
    expect(facts.map((fact) => fact.alpn)).toEqual(['postgresql', 'postgresql']);
    expect([near.secure, far.secure, near.paused, far.paused]).toEqual([true, true, true, true]);
    const payload = Buffer.alloc(3_000_000, 'outlive');
    const [sent, got] = [createHash('sha256').update(payload), createHash('sha256')];
    let seen = 0;
    const all = new Promise<void>((resolve) => {
      far.onData = (data) => {
        got.update(data);
        seen += data.length;
        far.pause();
        setImmediate(() => far.resume());
        if (seen === payload.length) resolve();
      };
    });
    let drained = false;
    near.onDrain = () => {
      drained = true;
    };
    expect(near.write(payload)).toBe(false);
    far.resume();
    await all;
    expect(got.digest('hex')).toBe(sent.digest('hex'));
    expect(near.bytesWritten).toBe(payload.length);
    expect(far.bytesRead).toBe(payload.length);
    const over = new Promise((resolve) => {
      far.onClose = resolve;
    });
    near.end();
    near.destroy();
    await over;
    expect(drained).toBe(true);
    expect(far.open).toBe(false);
  });

  it('works without ALPN, and with a client certificate', async () => {
    const [near, far] = await pair();
    const strict = serverTls({ cert: CERT, key: KEY, clientCa: CA });
    const own = clientTls({ mode: 'verify-ca', ca: CA, cert: CLIENT_CERT, key: CLIENT_KEY });
    const facts = await Promise.all([
      near.startTls({ side: 'client', tls: own, host: 'other.test' }),
      far.startTls({ side: 'server', tls: strict }),
    ]);
    expect(facts.map((fact) => fact.alpn)).toEqual([null, null]);
    const [bare, refusing] = await pair();
    const refused = refusing.startTls({ side: 'server', tls: strict });
    bare.startTls(client('require')).catch(() => {});
    await expect(refused).rejects.toMatchObject({ code: 'OUTLIVE_TLS_FAILED', culprit: 'client' });
    const [stranger, wary] = await pair();
    const signed = clientTls({ mode: 'require', cert: STRANGER_CERT, key: STRANGER_KEY });
    const turned = wary.startTls({ side: 'server', tls: strict });
    stranger.startTls({ side: 'client', tls: signed, host: 'db.test' }).catch(() => {});
    await expect(turned).rejects.toMatchObject({ code: 'OUTLIVE_TLS_FAILED', culprit: 'client' });
  });

  it.each([
    ['require', 'db.test', undefined, true],
    ['prefer', 'other.test', undefined, true],
    ['verify-ca', 'other.test', CA, true],
    ['verify-ca', 'db.test', CLIENT_CERT, false],
    ['verify-full', '127.0.0.1', CA, true],
    ['verify-full', 'other.test', CA, false],
    ['verify-full', '127.0.0.2', CA, false],
  ] as const)('%s to %s', async (mode, host, ca, good) => {
    const [near, far] = await pair();
    const theirs = far.startTls({ side: 'server', tls: server });
    theirs.catch(() => {});
    let closes = 0;
    near.onClose = () => closes++;
    const mine = near.startTls({ side: 'client', tls: clientTls({ mode, ca }), host });
    if (good) {
      expect(hex(await mine)).toBe(HASH);
      await theirs;
    } else {
      await expect(mine).rejects.toMatchObject({ code: 'OUTLIVE_TLS_FAILED', culprit: 'server' });
      expect(near.open).toBe(false);
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(closes).toBe(1);
    }
  });

  it('accepts TLS that starts at once: the first byte is looked at and given back', async () => {
    const came = new Promise<Wire>((resolve) => {
      arrived = resolve;
    });
    const socket = tls.connect({
      port: listener.port,
      host: '127.0.0.1',
      ca: CA,
      servername: 'db.test',
      ALPNProtocols: ['a'],
    });
    const far = await came;
    expect(await peekFirstByte(far)).toBe(0x16);
    const facts = await far.startTls({ side: 'server', tls: server, alpn: 'a', direct: true });
    expect(hex(facts)).toBe(HASH);
    expect(facts.alpn).toBe('a');
    far.onData = (data) => void far.write(data);
    far.resume();
    const echo = new Promise<string>((resolve) => socket.once('data', (data) => resolve(data.toString())));
    socket.write('there and back');
    expect(await echo).toBe('there and back');
    socket.destroy();
    far.destroy();
  });

  it('tells the first byte of plaintext, and -1 for nobody', async () => {
    const [near, far] = await pair();
    near.write(Buffer.from('Qabc'));
    expect(await peekFirstByte(far)).toBe(0x51);
    let said = '';
    far.onData = (data) => {
      said += Buffer.from(data).toString();
    };
    far.resume();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(said).toBe('Qabc');
    const [gone, left] = await pair();
    gone.end();
    expect(await peekFirstByte(left)).toBe(-1);
  });

  it('refuses plaintext that was buffered ahead of the handshake', async () => {
    const [near, far] = await pair();
    near.write(Buffer.from('injected'));
    expect(await peekFirstByte(far)).toBe(0x69);
    await expect(far.startTls({ side: 'server', tls: server, peer: 'client' })).rejects.toMatchObject({
      code: 'OUTLIVE_PROTOCOL_VIOLATION',
      culprit: 'client',
    });
    expect(far.open).toBe(false);
  });

  it('fails, and does not hang, when the peer leaves or talks nonsense in the handshake', async () => {
    for (const act of ['end', 'reset', 'nonsense'] as const) {
      const [near, far] = await pair();
      const handshake = far.startTls({ side: 'server', tls: server });
      let closes = 0;
      far.onClose = () => closes++;
      if (act === 'nonsense') near.write(Buffer.from('GET / HTTP/1.0\r\n\r\n'));
      else near[act]();
      await expect(handshake).rejects.toMatchObject({ code: 'OUTLIVE_TLS_FAILED', culprit: 'client' });
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(closes).toBe(1);
      await expect(far.startTls({ side: 'server', tls: server })).rejects.toMatchObject({ code: 'OUTLIVE_TLS_FAILED' });
    }
  });

  it('ends a handshake that nobody goes on with, when the exchange runs out of time', async () => {
    function* secure(): Exchange<null> {
      yield { want: 'tls' };
      return null;
    }
    const [, far] = await pair();
    const run = runExchange(far, secure(), {
      frameLength: () => 1,
      peer: 'client',
      tls: { side: 'server', tls: server },
      deadlineMs: 60,
    });
    await expect(run).rejects.toMatchObject({ code: 'OUTLIVE_EXCHANGE_TIMEOUT' });
    far.destroy();
  });

  it('upgrades in the middle of an exchange', async () => {
    function* ask(): Exchange<TlsFacts> {
      yield { want: 'bytes', count: 1, send: Buffer.from('S?') };
      const facts = (yield { want: 'tls', alpn: 'db' }) as TlsFacts;
      yield { want: 'bytes', count: 2, send: Buffer.from('hello') };
      return facts;
    }
    function* answer(): Exchange<TlsFacts> {
      yield { want: 'bytes', count: 2 };
      const facts = (yield { want: 'tls', send: Buffer.from('S'), alpn: 'db' }) as TlsFacts;
      yield { want: 'bytes', count: 5 };
      yield { want: 'nothing', send: Buffer.from('ok!') };
      return facts;
    }
    const [near, far] = await pair();
    const common = { frameLength: () => 1, deadlineMs: 3000 };
    const [mine, theirs] = await Promise.all([
      runExchange(near, ask(), { ...common, peer: 'server', tls: client('verify-full') }),
      runExchange(far, answer(), { ...common, peer: 'client', tls: { side: 'server', tls: server } }),
    ]);
    expect([hex(mine.result), hex(theirs.result)]).toEqual([HASH, HASH]);
    expect([mine.result.alpn, theirs.result.alpn]).toEqual(['db', 'db']);
    expect(Buffer.from(mine.rest).toString()).toBe('!');
    expect([near.secure, near.paused, near.open]).toEqual([true, true, true]);
    const [bare] = await pair();
    bare.write(Buffer.from('x'));
    const refused = runExchange(
      bare,
      (function* () {
        yield { want: 'tls' } as const;
        return 1;
      })(),
      { ...common, peer: 'server' },
    );
    await expect(refused).rejects.toMatchObject({ code: 'OUTLIVE_TLS_CONFIG' });
  });

  it('leaves no handle behind, however a connection ends', async () => {
    const count = (): number => process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
    await new Promise((resolve) => setTimeout(resolve, 50));
    const before = count();
    for (const how of ['end', 'destroy', 'reset'] as const) {
      for (let i = 0; i < 10; i++) {
        const [near, far] = await pair();
        await Promise.all([near.startTls(client('require')), far.startTls({ side: 'server', tls: server })]);
        const closes = [near, far].map(
          (wire) =>
            new Promise((resolve) => {
              wire.onClose = resolve;
            }),
        );
        far.resume();
        near[how]();
        await Promise.all(closes);
      }
    }
    ends = [];
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(count()).toBeLessThanOrEqual(before);
  });

  it('leaves a closed connection alone', async () => {
    const [near, far] = await pair();
    near.destroy();
    await expect(near.startTls(client('require'))).rejects.toMatchObject({ code: 'OUTLIVE_TLS_FAILED' });
    const run = runExchange(near, nothing(), { frameLength: () => 1, peer: 'server', deadlineMs: 100 });
    await expect(run).rejects.toMatchObject({ code: 'OUTLIVE_EXCHANGE_CLOSED', culprit: 'server' });
    far.destroy();
  });
});
