-- Runs, twice, for what Envoy has found no scope for by the host as it came: finds the app a request names by the rules of a
-- node's own front (runtime_node/http/router.py), or says why there is none. A scope's key is a host name.
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

local function look_again(handle, headers, key, miss, value)
  headers:replace(ROUTE, key)
  headers:replace(MISS, miss)
  headers:replace(VALUE, value)
  handle:clearRouteCache()
end

local function is_found(handle)
  return handle:metadata():get("found") ~= nil
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(MISS) ~= nil then
    return -- what there is to say, the first run has said
  end
  local host, is_address = host_of(headers:get(":authority") or "")
  if host == nil then
    return headers:add(MISS, "malformed")
  end
  for _, base in ipairs(BASES) do
    if #host > #base and string.sub(host, -#base) == base then
      return look_again(handle, headers, host, "host", host)
    end
  end
  if host ~= string.gsub(headers:get(ROUTE) or "", ":%d*$", "") then
    -- Envoy has not looked for it in the form in which domains are compared. If it is not found in that one either, the
    -- second run goes on from there: one run can look only once whether there is a route.
    look_again(handle, headers, host, "host", host)
    if not is_found(handle) then
      headers:remove(MISS)
      headers:remove(VALUE)
    end
    return
  end
  local above = string.match(host, "^[^.]+(%..+)$")
  if above and not is_address and not PATH_HOSTS[host] then
    look_again(handle, headers, "*" .. above, "host", host)
    if is_found(handle) then
      return
    end
  end
  headers:replace(ROUTE, host)
  headers:remove(MISS)
  headers:remove(VALUE)
  local app = headers:get("x-app")
  local by = "header"
  if app == nil then
    by = "path"
    app = string.match(headers:get(":path") or "", "^/apps/([^/?]+)")
  end
  if not (is_address or PATH_HOSTS[host] or host == "" or string.sub(host, -10) == ".localhost") then
    return look_again(handle, headers, host, app and "foreign" or "nobody", host)
  end
  if app == nil then
    return headers:add(MISS, "nobody")
  end
  if not is_id(app) then
    return headers:add(MISS, by)
  end
  return look_again(handle, headers, app .. BASES[1], by, app)
end
