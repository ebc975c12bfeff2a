-- Finds the app a request names, by the rules of a node's own front (runtime_node/http/router.py): its name under a
-- base domain, a custom domain, X-App, the path. What it finds is the key of a scope; without one, why there is none.
local BASES = {--[[BASES]]}
local PATH_HOSTS = {--[[PATH_HOSTS]]}
local ROUTE, MISS, VALUE = "x-appsupervisor-route", "x-appsupervisor-miss", "x-appsupervisor-value"

local function host_of(authority)
  local host = string.lower(authority)
  if string.sub(host, 1, 1) == "[" then
    return string.match(host, "^(%[[0-9a-f:.]+%])"), true
  end
  host = string.gsub(host, ":%d*$", "")
  host = string.gsub(host, "%.$", "")
  if #host > 253 or string.find(host, "[^a-z0-9_.-]") then
    return nil, false
  end
  return host, string.find(host, "^%d+%.%d+%.%d+%.%d+$") ~= nil
end

local function is_id(text)
  return #text <= 63 and string.find(text, "^[a-z0-9][a-z0-9-]*$") ~= nil and string.sub(text, -1) ~= "-"
end

local function found(handle, headers, key, miss, value)
  headers:add(ROUTE, key)
  headers:add(MISS, miss)
  headers:add(VALUE, value)
  handle:streamInfo():dynamicMetadata():set("appsupervisor", "route", key)
  handle:clearRouteCache()
end

local function missed(headers, miss)
  headers:add(MISS, miss)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local host, is_address = host_of(headers:get(":authority") or "")
  if host == nil then
    return missed(headers, "malformed")
  end
  for _, base in ipairs(BASES) do
    if #host > #base and string.sub(host, -#base) == base then
      local app = string.sub(host, 1, -#base - 1)
      if string.find(app, ".", 1, true) == nil then
        return found(handle, headers, "a:" .. app, "host", host)
      end
      return found(handle, headers, "d:" .. host, "host", host)
    end
  end
  local app = headers:get("x-app")
  local by = "header"
  if app == nil then
    by = "path"
    app = string.match(headers:get(":path") or "", "^/apps/([^/?]+)")
  end
  if not (is_address or PATH_HOSTS[host] or host == "" or string.sub(host, -10) == ".localhost") then
    return found(handle, headers, "d:" .. host, app and "foreign" or "nobody", host)
  end
  if app == nil then
    return missed(headers, "nobody")
  end
  if not is_id(app) then
    return missed(headers, by)
  end
  return found(handle, headers, "a:" .. app, by, app)
end
