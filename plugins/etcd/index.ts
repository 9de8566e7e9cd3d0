/**
 * Terms of ownership in etcd (v3 API, seen with 3.4), for pairs and for many gateways. Options:
 *
 *     endpoints: [http://10.0.0.1:2379, ...]   # all of the etcd cluster's, so that one that is down is no harm
 *     ttl: 3000                                # ms, whole seconds, at least 2 s (with etcd's default election timeout)
 *     prefix: /outlive/NAME/                   # of the keys; the same on all gateways that belong together, and theirs alone
 *     tls: { ca: FILE, cert: FILE, key: FILE } # for https endpoints; cert and key where etcd wants them of clients
 *     auth: { user: NAME, passwordFile: FILE }
 */

import { z } from 'zod';
import { CodedError, type LeasePlugin, type PluginContext, type PluginModule } from '../../core/contract/index.js';

const File = z.string().min(1);

const Options = z
  .strictObject({
    endpoints: z
      .array(z.string().regex(/^https?:\/\/(\[[0-9a-f:.]+\]|[^\s/:@]+):\d+$/i, 'write http(s)://host:port'))
      .min(1),
    ttl: z
      .number()
      .int()
      .min(2000, 'must be at least 2000 (ms): etcd ends nothing sooner')
      .max(600_000)
      .multipleOf(1000, 'must be whole seconds, in ms: etcd counts in seconds')
      .default(3000),
    prefix: z.string().regex(/^\/.+\/$/, 'must begin and end with a slash'),
    tls: z.strictObject({ ca: File.optional(), cert: File.optional(), key: File.optional() }).optional(),
    auth: z.strictObject({ user: z.string().min(1), passwordFile: File }).optional(),
  })
  .superRefine(({ endpoints, tls }, { addIssue }) => {
    const wrong = (path: string, message: string) => addIssue({ code: 'custom', path: [path], message });
    const secure = endpoints.filter((url) => url.startsWith('https:')).length;
    if (secure > 0 && secure < endpoints.length) wrong('endpoints', 'must be all http or all https');
    if (tls !== undefined && secure === 0) wrong('tls', 'is for https endpoints');
    if ((tls?.cert === undefined) !== (tls?.key === undefined)) wrong('tls', 'cert and key belong together');
  });

const plugin: PluginModule = {
  name: 'etcd',
  contract: '1.0.0',
  kind: 'lease',
  /** Does not wait for etcd: it may come up later than the gateway. Rejects with OUTLIVE_PLUGIN_OPTIONS. */
  async create(given: unknown, context: PluginContext): Promise<LeasePlugin> {
    const parsed = Options.safeParse(given ?? {});
    if (!parsed.success) {
      const [{ path, message }] = parsed.error.issues;
      throw new CodedError('OUTLIVE_PLUGIN_OPTIONS', 'config', `${path.join('.') || 'options'}: ${message}`);
    }
    const { endpoints, ttl, prefix, tls, auth } = parsed.data;
    const read = (path: string | undefined) => (path === undefined ? undefined : context.readFile(path));
    const [ca, cert, key, password] = await Promise.all([tls?.ca, tls?.cert, tls?.key, auth?.passwordFile].map(read));
    // The client and its gRPC are large: loaded only by who uses them.
    const [{ Store }, { EtcdLeases }] = await Promise.all([import('./store.js'), import('./lease.js')]);
    const store = new Store({
      endpoints,
      tls: tls === undefined ? null : { ca, cert, key },
      auth: auth === undefined ? null : { user: auth.user, password: (password as string).replace(/\r?\n$/, '') },
    });
    return new EtcdLeases(store, ttl, prefix, context.log);
  },
};

export default plugin;
