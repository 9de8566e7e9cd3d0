/**
 * For an address that needs no moving: both hosts have it already, and something else decides where packets go (a route that the network
 * takes back, a load balancer). No options.
 *
 * What it does not do: it keeps to no lifetime. A host that lost its term goes on having the address, so it is the guard (nftables) or
 * the network that must keep it silent.
 */

import { type AddressPlugin, CodedError, type PluginModule } from '../../core/contract/index.js';

const plugin: PluginModule = {
  name: 'address-none',
  contract: '1.0.0',
  kind: 'address',
  /** Rejects with OUTLIVE_PLUGIN_OPTIONS. */
  async create(given: unknown): Promise<AddressPlugin> {
    const [key] = Object.keys((given ?? {}) as object);
    if (key !== undefined) throw new CodedError('OUTLIVE_PLUGIN_OPTIONS', 'config', `${key}: there are no options`);
    const nothing = async () => {};
    return { take: nothing, renew: nothing, drop: nothing, announce: nothing };
  },
};

export default plugin;
